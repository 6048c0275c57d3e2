"""What a dataset's manifest says: the kind of its records, its settings, and counts of every scene and of all."""

import collections
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from mimic_jax import records

Entry = dict[str, Any]

# What the records of each kind are called in what is printed.
UNITS = {"pairs": "pairs", "images": "images", "stereo": "stereo pairs"}


def kind_of(manifest: Entry) -> str:
    """The kind of record of a dataset. Manifests of earlier versions have pairs and do not say so."""
    return manifest.get("kind", records.NAME)


def kept(manifest: Entry) -> int:
    """How many records a dataset has, by its manifest."""
    return manifest["totals"][records.count_names(kind_of(manifest))[1]]


def manifest_of(
    kind: str, settings: Entry, used: Sequence[Entry], scenes: dict[str, Entry], facts: Entry | None = None
) -> Entry:
    """The manifest of a dataset.

    Args:
      kind: of its records.
      settings: what it was made with.
      used: the versions of the tools, of each run that had a part in it.
      scenes: the entries of its scenes, in order.
      facts: more of it, as {"classes": [names]}.
    """
    return {
        # Pairs are the kind of manifests that do not name one.
        **({} if kind == records.NAME else {"kind": kind}),
        **(facts or {}),
        "settings": settings,
        "versions": {tool: ", ".join(sorted({each[tool] for each in used if tool in each})) for tool in versions()},
        "totals": totals(scenes.values(), kind),
        "scenes": scenes,
    }


def totals(entries: Iterable[Entry], kind: str = records.NAME) -> Entry:
    """Sums of the counts of many scenes of a dataset of this kind."""
    names = ("frames_read", *records.count_names(kind))
    numbers: collections.Counter = collections.Counter()
    tables: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for entry in entries:
        numbers.update(scenes=1, **{key: entry[key] for key in names})
        for key in ("rejected", "problems", "yield"):
            tables[key].update(entry.get(key, {}))
    total = {key: numbers[key] for key in ("scenes", *names)}
    total |= {key: dict(sorted(tables[key].items())) for key in ("rejected", "problems")}
    return total | ({"yield": dict(tables["yield"])} if tables["yield"] else {})


def versions() -> dict[str, str]:
    """The versions of the tools that decide what a dataset holds."""
    return {
        "data_prep": importlib.metadata.version("mimic_jax"),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
    }
