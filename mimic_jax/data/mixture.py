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

# Of a dataset's manifest so many scenes are compared with the records.
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
    """Some of the records of a mixture. Place i is the i-th of them, one dataset after the other.

    indices: for each dataset the places of its records that belong, in order; None for all.
    """

    mixture: Mixture
    indices: tuple[Int[np.ndarray, "_"] | None, ...]

    def __len__(self) -> int:
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """How many records of each dataset belong."""
        return [
            len(dataset if indices is None else indices)
            for dataset, indices in zip(self.mixture.datasets, self.indices, strict=True)
        ]


def open_mixture(spec: str | Sequence[Any], field: str) -> Mixture:
    """Opens the datasets that a config names.

    Args:
      spec: "a" or "a,b,c", or a list of folders: every example is equally likely. A list of (folder, weight): the
        shares of the datasets are proportional to the weights.
      field: the name of the config's field, for messages.

    Raises:
      InputError: nothing is named, an entry is empty or given twice, a weight is missing or is not above 0, or a folder
        is no dataset.
    """
    entries = spec.split(",") if isinstance(spec, str) else list(spec)
    if not any(entries):
        raise InputError(f"{field} is not set: give --{field}=DATASET, a folder that mine made")
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
    places = [str(files.as_path(folder).resolve()) for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{field}: {folder} is given twice; name it once")
    weights = None
    if any(weighted):
        for folder, weight in entries:
            if not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise InputError(f"{field}: the weight of {folder} is {weight!r}; it must be a number above 0")
        weights = tuple(float(weight) for _, weight in entries)
    return Mixture(tuple(records.open_dataset(folder) for folder in folders), weights)


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
        having = [place for place, each in enumerate(scenes) if key in each]
        if any(wanted[place] > 0 for place in having) and all(left[place] > 1 for place in having):
            held_out.add(key)
            for place in having:
                wanted[place] -= 1
                left[place] -= 1
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
    """Where the records of each scene lie, by SOURCE/SCENE.

    Taken from the manifest where it agrees with the records of some scenes; else every record is read.
    """
    source = record_source([dataset])
    try:
        spans = _spans_of_manifest(dataset.manifest())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, or not written by mine
        spans = []
    ends = [spans[place] for place in np.linspace(0, len(spans) - 1, min(len(spans), CHECKED_SCENES)).astype(int)]
    places = [place for _, span in ends for place in (span[0], span[-1])]
    if sum(len(span) for _, span in spans) == len(dataset) and _keys(source, places) == [
        key for key, _ in ends for _ in range(2)
    ]:
        return _grouped(spans)
    firsts = range(0, len(dataset), CHUNK)
    return _grouped(
        (key, range(first + row, first + row + 1))
        for first in track(firsts, f"reading the scenes of {dataset.folder}", disable=not hosts.is_first())
        for row, key in enumerate(_keys(source, range(first, min(first + CHUNK, len(dataset)))))
    )


def record_source(datasets: Iterable[records.Dataset]) -> grain.sources.ArrayRecordDataSource:
    """The records of datasets, one dataset after the other, as stored."""
    return grain.sources.ArrayRecordDataSource([str(shard) for dataset in datasets for shard in dataset.shards])


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


def _keys(source: grain.sources.ArrayRecordDataSource, places: Sequence[int]) -> list[str]:
    pairs = map(records.decode, source.__getitems__(list(places)))
    return [_key(pair.source, pair.scene) for pair in pairs]


def _key(source: str, scene: str) -> str:
    # As merge names scenes: those of MIMIC's release say the source already.
    return scene if scene.startswith(f"{source}/") else f"{source}/{scene}"


def _grouped(spans: Iterable[tuple[str, range]]) -> dict[str, list[range]]:
    """Spans by key; those that follow one another are joined."""
    grouped: dict[str, list[range]] = {}
    for key, span in spans:
        of_key = grouped.setdefault(key, [])
        if of_key and of_key[-1].stop == span.start:
            of_key[-1] = range(of_key[-1].start, span.stop)
        else:
            of_key.append(span)
    return grouped
