"""Datasets that are trained on together, and the scenes of them that are held out."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int
from rich.progress import track

from mimic_jax import files, hosts, records
from mimic_jax.command import InputError

# Scenes of a manifest that are compared with the records.
CHECKED_SCENES = 100
# Records read at a time, where all must be read.
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Datasets to train on together.

    weights: the shares of their examples in every batch are proportional to these, whatever their sizes. None: every
      example is equally likely.
    """

    datasets: tuple[records.Dataset, ...]
    weights: tuple[float, ...] | None = None

    def __len__(self) -> int:
        """Examples of one epoch."""
        return sum(map(len, self.datasets))

    def fingerprint(self) -> str:
        """Tells one state of the data from another: it changes with a dataset, their order and their weights."""
        fingerprints = [dataset.fingerprint() for dataset in self.datasets]
        if len(fingerprints) == 1 and self.weights is None:
            return fingerprints[0]
        return hashlib.sha256(repr((fingerprints, self.weights)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """A selection of the records of a mixture. Index i is the i-th of them, one dataset after the other.

    indices: for each dataset the numbers of the selected records, in order; None for all.
    """

    mixture: Mixture
    indices: tuple[Int[np.ndarray, "_"] | None, ...]

    def __len__(self) -> int:
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """The number of selected records of each dataset."""
        return [
            len(dataset if indices is None else indices)
            for dataset, indices in zip(self.mixture.datasets, self.indices, strict=True)
        ]


def open_mixture(spec: str | Sequence[Any], field: str, kind: str = "pairs") -> Mixture:
    """Opens the datasets that a config names.

    Args:
      spec: "a" or "a,b,c", or a list of folders: every example is equally likely. A list of (folder, weight): the
        shares of the datasets are proportional to the weights.
      field: the name of the config's field, for messages.
      kind: of the records.

    Raises:
      InputError: nothing is named, an entry is empty or given twice, a weight is missing or is not above 0, or a folder
        is no dataset.
    """
    entries = spec.split(",") if isinstance(spec, str) else list(spec)
    if not any(entries):
        raise InputError(f"{field} is not set: give --{field}=DATASET, a dataset folder")
    weighted = [isinstance(entry, list | tuple) for entry in entries]
    if any(weighted) and not all(weighted):
        raise InputError(f"{field}={spec!r}: give all datasets a weight, as (folder, weight), or none")
    if any(weighted) and any(len(entry) != 2 for entry in entries):
        raise InputError(f"{field}={spec!r}: each entry must be a folder and its weight, as (folder, weight)")
    folders = [entry[0] for entry in entries] if any(weighted) else entries
    for folder in folders:
        if not isinstance(folder, str | os.PathLike):
            raise InputError(
                f"{field}={spec!r}: {folder!r} is no folder; with weights, give a list of (folder, weight)"
            )
        if not os.fspath(folder).strip():
            raise InputError(f"{field}={spec!r}: an entry is empty; name a dataset folder or leave it out")
    folders = [os.fspath(folder).strip() for folder in folders]
    resolved = [str(files.as_path(folder).resolve()) for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise InputError(f"{field}: {folder} is given twice; name it once")
    weights = None
    if any(weighted):
        for folder, weight in entries:
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise InputError(f"{field}: the weight of {folder} is {weight!r}; it must be a number above 0")
        weights = tuple(float(weight) for _, weight in entries)
    return Mixture(tuple(records.open_dataset(folder, kinds=(kind,)) for folder in folders), weights)


def all_examples(mixture: Mixture) -> Examples:
    """Every record of a mixture."""
    return Examples(mixture, (None,) * len(mixture.datasets))


def hold_out(mixture: Mixture, fraction: float) -> tuple[Examples, Examples]:
    """Examples for training, and examples of scenes that training never sees.

    Of each dataset's scenes `fraction` is held out, but at least one: those whose names have the smallest SHA-256, so
    that neither order nor growth of the datasets moves many. A scene of two datasets is held out of both. Every dataset
    keeps a scene for training: of one that has no other, nothing is held out.

    Args:
      fraction: of the scenes, in [0, 1). 0: nothing is held out.

    Returns:
      (for training, held out); the latter is empty where no scene can be spared.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction} must be from 0 to below 1")
    if not fraction:
        nothing = np.array([], np.int64)
        return all_examples(mixture), Examples(mixture, (nothing,) * len(mixture.datasets))
    scenes = [scenes_of(dataset) for dataset in mixture.datasets]
    wanted = [max(1, round(fraction * len(each))) for each in scenes]
    left = [len(each) for each in scenes]
    held_out = set()
    for key in sorted(set().union(*scenes), key=lambda key: hashlib.sha256(key.encode()).digest()):
        having = [number for number, each in enumerate(scenes) if key in each]
        if any(wanted[number] > 0 for number in having) and all(left[number] > 1 for number in having):
            held_out.add(key)
            for number in having:
                wanted[number] -= 1
                left[number] -= 1
    kept, apart = [], []
    for dataset, each in zip(mixture.datasets, scenes, strict=True):
        is_apart = np.zeros(len(dataset), bool)
        for key in held_out & each.keys():
            for span in each[key]:
                is_apart[span.start : span.stop] = True
        kept.append(np.flatnonzero(~is_apart) if is_apart.any() else None)
        apart.append(np.flatnonzero(is_apart))
    return Examples(mixture, tuple(kept)), Examples(mixture, tuple(apart))


def scenes_of(dataset: records.Dataset) -> dict[str, list[range]]:
    """The numbers of the records of each scene, by SOURCE/SCENE.

    Taken from the manifest where it agrees with the records of some scenes; else every record is read.
    """
    source = record_source(dataset)
    try:
        spans = _spans_of_manifest(dataset.manifest())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, or not written by mine
        spans = []
    checked = [spans[number] for number in np.linspace(0, len(spans) - 1, min(len(spans), CHECKED_SCENES)).astype(int)]
    ends = [number for _, span in checked for number in (span[0], span[-1])]
    if sum(len(span) for _, span in spans) == len(dataset) and _keys(dataset, source, ends) == [
        key for key, _ in checked for _ in range(2)
    ]:
        return _grouped(spans)
    firsts = range(0, len(dataset), CHUNK)
    return _grouped(
        (key, range(first + row, first + row + 1))
        for first in track(firsts, f"reading the scenes of {dataset.folder}", disable=not hosts.is_first())
        for row, key in enumerate(_keys(dataset, source, range(first, min(first + CHUNK, len(dataset)))))
    )


def describe_data(mixture: Mixture, unit: str = "pairs") -> list[dict[str, Any]]:
    """What there is to say of each dataset: folder, number of examples, fingerprint, weight, and its manifest.

    Args:
      unit: what examples are called, which is the key of their number.

    Returns:
      A dict for each dataset. The manifest's entries of single scenes are left out.
    """
    described = []
    for number, dataset in enumerate(mixture.datasets):
        about = {"folder": str(dataset.folder), unit: len(dataset), "fingerprint": dataset.fingerprint()}
        if mixture.weights is not None:
            about["weight"] = mixture.weights[number]
        try:
            manifest = dataset.manifest()
        except (OSError, ValueError):  # a dataset made elsewhere need not have one
            manifest = {}
        described.append(about | {key: value for key, value in manifest.items() if key != "scenes"})
    return described


def record_source(dataset: records.Dataset) -> grain.sources.ArrayRecordDataSource:
    """The records of a dataset, as stored."""
    return grain.sources.ArrayRecordDataSource([str(shard) for shard in dataset.shards])


def _spans_of_manifest(manifest: dict) -> list[tuple[str, range]]:
    spans = []
    for name, span in records.scene_spans(manifest).items():
        source = manifest["scenes"][name].get("source") or manifest["settings"]["name"]
        if "merged" in manifest["settings"]:
            # The name is SOURCE/SCENE already; before it stands a folder where two inputs had the same.
            name = f"/{name}"
            name = name[max(0, name.find(f"/{source}/")) + 1 :]
        if span:
            spans.append((_key(source, name), span))
    return spans


def _keys(dataset: records.Dataset, source: grain.sources.ArrayRecordDataSource, numbers: Sequence[int]) -> list[str]:
    decoded = [dataset.decode(record) for record in source.__getitems__(list(numbers))]
    return [_key(record.source, record.scene) for record in decoded]


def _key(source: str, scene: str) -> str:
    # As merge names scenes. Scenes of MIMIC's release begin with the source already.
    return scene if scene.startswith(f"{source}/") else f"{source}/{scene}"


def _grouped(spans: Iterable[tuple[str, range]]) -> dict[str, list[range]]:
    """Spans by key; adjacent spans are joined."""
    grouped: dict[str, list[range]] = {}
    for key, span in spans:
        of_key = grouped.setdefault(key, [])
        if of_key and of_key[-1].stop == span.start:
            of_key[-1] = range(of_key[-1].start, span.stop)
        else:
            of_key.append(span)
    return grouped
