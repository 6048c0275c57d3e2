"""Writes one HTML page that shows a dataset: counts, reasons, pairs with their patches, images with their labels.

    python -m data_prep.report DATASET

The page needs no network and can be opened from the disk. What is after its # can be typed: #source=NAME,
#scene=NAME or a part of it, #order=random, lowest or highest, #patches=all; joined by &.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from google.protobuf.message import DecodeError
from rich.console import Console

from data_prep import inspect, manifests
from data_prep import report_pictures as pictures
from data_prep.matching import MIN_MATCHES, Reason
from data_prep.settings import UNTESTED
from mimic_jax import command, files, records
from mimic_jax.command import InputError

# Records whose pictures are in the page, at most: a few megabytes.
PICTURES = {"pairs": 144, "images": 72, "stereo": 96}
# What a record of each kind is called, and what the page is.
_WORDS = {
    "pairs": {"one": "pair", "many": "pairs", "title": "Mined pairs"},
    "images": {"one": "image", "many": "images", "title": "Labelled images"},
    "stereo": {"one": "stereo pair", "many": "stereo pairs", "title": "Stereo pairs"},
}
# Scenes in the page, at most.
SCENES = 2000

_MEANINGS = {
    Reason.TOO_FEW_MATCHES: f"{MIN_MATCHES} keypoints or fewer look alike: different places, blur, or blank walls",
    Reason.NO_HOMOGRAPHY: "no single motion of the picture agrees with enough of the keypoints that look alike",
    Reason.BELOW_BAND: "the views share too little",
    Reason.ABOVE_BAND: "the views are too much alike to teach anything",
    Reason.NOT_CHOSEN: "inside the band, but another pair was preferred",
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A sampled record: its place in the dataset, its scene's place in the manifest, and how many patches of view 1
    have a match; None where that is not known."""

    place: int
    scene: int
    matched: int | None


def report(folder: Path, output: Path, sample: int = 2000) -> None:
    """Writes the page of a dataset, or of a run that kept no record.

    Args:
      folder: the dataset.
      output: the HTML file.
      sample: records that are read, drawn at random; all where there are no more.

    Raises:
      InputError: the folder is no whole dataset, or the page cannot be written.
    """
    text = page(collect(folder, sample))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write(output, text.encode())
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); name another file by --output") from error


def page(data: dict[str, Any]) -> str:
    """The page with its data, styles and program in it."""
    # Whatever a name holds, it cannot end the element that the data is in, nor begin a comment there.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = _template("report.html")
    for mark, name in (
        ("styles", "report.css"),
        ("gallery", "report_gallery.js"),
        ("panels", "report_panels.js"),
        ("program", "report.js"),
    ):
        text = text.replace(f"/* {mark} */", _template(name))
    # The data last: nothing is replaced in it.
    return text.replace("/* data */", encoded)


def collect(folder: Path, sample: int = 2000) -> dict[str, Any]:
    """What the page shows, as JSON has it. The same dataset gives the same.

    Raises:
      InputError: the folder is no whole dataset.
    """
    manifest = inspect.read_manifest(folder)
    names, entries = list(manifest["scenes"]), list(manifest["scenes"].values())
    totals = inspect.totals_by_source(manifest)
    sources, kind = list(totals), manifests.kind_of(manifest)
    kept = records.count_names(kind)[1]
    source_of = [sources.index(inspect.source_of(entry, manifest)) for entry in entries]
    patches, count, unreadable, gallery = 0, 0, 0, []
    drawn: list[Drawn] = []
    if manifest["totals"][kept]:
        opened = records.open_dataset(folder, kinds=[kind])
        patches, count = opened.patches if kind == records.NAME else 0, len(opened)
        # Records lie in the order of the manifest's scenes.
        ends = np.cumsum([entry[kept] for entry in entries])
        if not len(ends) or ends[-1] != count:
            raise InputError(f"{folder}: manifest.json is not of these shards ({count} {kind}); copy the folder again")
        drawn, unreadable = _draw(opened, ends, sample)
        gallery = _pictures(opened, choose(drawn, source_of, PICTURES[kind]))
    listed = _listed(entries, [picture["scene"] for picture in gallery])
    number = {scene: place for place, scene in enumerate(listed)}
    for picture in gallery:
        picture["source"], picture["scene"] = source_of[picture["scene"]], number[picture["scene"]]
    return {
        "name": _name(folder),
        "patches": patches,
        "kind": kind,
        "words": _WORDS[kind],
        "count": count,
        "unreadable": unreadable,
        "sources": [{"name": name} | _counts(totals[name], kind) for name in sources],
        "scenes": [
            {"name": names[scene], "source": source_of[scene]} | _counts(entries[scene], kind) for scene in listed
        ],
        "allScenes": len(entries),
        "bands": _bands(manifest, sources),
        "meanings": {reason.value: meaning for reason, meaning in _MEANINGS.items()},
        "settings": _distinct(inspect.settings_of(manifest)),
        "versions": [{"name": tool, "value": str(version)} for tool, version in manifest["versions"].items()],
        "sample": [[source_of[each.scene], number.get(each.scene, -1), each.matched] for each in drawn],
        "gallery": gallery,
    }


def choose(drawn: Sequence[Drawn], source_of: Sequence[int], limit: int) -> list[tuple[Drawn, bool]]:
    """Which records have their pictures in the page, and whether each stands for random ones.

    Of the whole and of each source the lowest and the highest overlaps, and as many from the front of `drawn`; then one
    of each scene, then others, while there is room. In the order of `drawn`.

    Args:
      drawn: in random order.
      source_of: for each scene its source.
      limit: as many at most.
    """
    groups = [list(drawn)]
    for source in dict.fromkeys(source_of):
        groups.append([each for each in drawn if source_of[each.scene] == source])
    quota = max(1, limit // 4 // max(1, len(groups) - 1))
    chosen: dict[Drawn, bool] = {}
    for group in groups:
        known = sorted((each for each in group if each.matched is not None), key=lambda each: each.matched)
        chosen.update(dict.fromkeys(group[:quota], True))
        for each in [*known[:quota], *known[-quota:]]:
            chosen.setdefault(each, False)
    firsts = {each.scene: each for each in reversed(drawn)}
    for each in [*(each for each in drawn if firsts[each.scene] is each), *drawn]:
        if len(chosen) >= limit:
            break
        chosen[each] = True
    kept = dict(list(chosen.items())[:limit])
    return [(each, kept[each]) for each in drawn if each in kept]


def _draw(opened: records.Dataset, ends: np.ndarray, sample: int) -> tuple[list[Drawn], int]:
    """Records in random order, and how many of those drawn cannot be read."""
    rng = np.random.default_rng(0)
    places = rng.choice(len(opened), min(sample, len(opened)), replace=False).tolist()
    found = {}
    for place, record in _read(opened, places):
        matched = None
        if opened.kind == records.NAME and np.isfinite(record.overlap):
            matched = round(min(max(record.overlap, 0), 1) * opened.patches)
        found[place] = Drawn(place, int(np.searchsorted(ends, place, side="right")), matched)
    return [found[place] for place in places if place in found], len(places) - len(found)


def _read(opened: records.Dataset, places: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """The records at these places, in their order in the dataset; those that are damaged are left out."""
    from array_record.python.array_record_module import ArrayRecordReader

    starts = np.cumsum([0, *opened.shard_lengths])
    wanted = np.sort(np.fromiter(places, int))
    for shard, start, end in zip(opened.shards, starts[:-1], starts[1:], strict=True):
        inside = wanted[(wanted >= start) & (wanted < end)]
        if not len(inside):
            continue
        with files.local(shard) as local:
            reader = ArrayRecordReader(os.fspath(local))
            for place in inside.tolist():
                try:
                    yield place, opened.decode(reader.read([place - int(start)])[0])
                except (RuntimeError, ValueError, IndexError, DecodeError):
                    continue
            reader.close()


def _pictures(opened: records.Dataset, chosen: list[tuple[Drawn, bool]]) -> list[dict[str, Any]]:
    found = dict(_read(opened, [each.place for each, _ in chosen]))
    classes = opened.classes()
    draw = {
        "pairs": pictures.of_pair,
        "images": functools.partial(pictures.of_image, classes=classes),
        "stereo": pictures.of_stereo,
    }[opened.kind]
    return [
        {"scene": each.scene, "random": at_random, "matched": each.matched} | draw(found[each.place])
        for each, at_random in chosen
    ]


def _listed(entries: list[dict[str, Any]], pictured: list[int]) -> list[int]:
    """The scenes in the page, in order: those with pictures, then those with problems, then others while there is
    room."""
    troubled = [scene for scene, entry in enumerate(entries) if entry["problems"]]
    return sorted(list(dict.fromkeys([*pictured, *troubled, *range(len(entries))]))[:SCENES])


def _counts(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    frames, tried, kept = inspect.counts_of(entry, kind)
    counts = {
        "scenes": entry.get("scenes", 1),
        "frames": frames,
        "tried": tried,
        "kept": kept,
        "rejected": entry["rejected"],
        "problems": entry["problems"],
    }
    return counts | ({"yield": entry["yield"]} if entry.get("yield") else {})


def _bands(manifest: dict[str, Any], sources: list[str]) -> list[dict[str, Any]]:
    """The bands of overlap that pairs had to be inside; a source that names its own has that of its run."""
    bands = []
    for run in inspect.settings_of(manifest):
        low, high = run.get("min_overlap"), run.get("max_overlap")
        numbers = all(isinstance(end, int | float) for end in (low, high))
        if run.get("policy") not in UNTESTED and numbers and 0 <= low <= high <= 1:
            source = sources.index(run["name"]) if run.get("name") in sources else None
            bands.append({"source": source, "low": low, "high": high})
    return bands


def _distinct(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting with the values it has in the runs."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.items():
            found.setdefault(key, {})[json.dumps(value, ensure_ascii=False).strip('"')] = None
    return [{"name": key, "value": " | ".join(values)} for key, values in found.items()]


def _name(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _template(name: str) -> str:
    return (resources.files("data_prep") / name).read_text(encoding="utf-8")


def main(dataset: str) -> None:
    """Runs the command."""
    folder = files.as_path(dataset)
    # Beside the dataset: within it the page would be counted and copied with it.
    output = files.as_path(flags.FLAGS.output) if flags.FLAGS.output else folder.parent / f"{_name(folder)}.html"
    report(folder, output, flags.FLAGS.sample)
    Console(markup=False, highlight=False, emoji=False, soft_wrap=True).print(
        f"{inspect.plain(str(output))}: open it in a browser ({inspect.readable_size(files.size(output))})"
    )


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "The HTML file. Default: DATASET.html, beside the folder.")
    flags.DEFINE_integer("sample", 2000, "Records to read, drawn at random.", lower_bound=1)
    command.run(main, positional=("DATASET",))
