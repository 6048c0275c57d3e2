"""Labelled data that others, or our own worlds, have made. Each source is a module with a function
`read(input, settings)`, which returns what there is to store: `Labelled`."""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mimic_jax import records
from mimic_jax.command import InputError

# The kinds of record that each source can give.
SOURCES = {"worlds": ("images", "stereo")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides which records a scene gives.

    name: the source dataset that records say they are from.
    source: what the input is, a key of `SOURCES`. records: the kind of record to make.
    every: frames between images, or between the first views of stereo records.
    gap: frames between the two views of a stereo record.
    min_overlap: least share of view 1 that view 2 must see for a stereo record to be kept.
    image_size: pixels a side of what is stored; 0 for the source's own size. Nothing is enlarged.
    quality: of the stored JPEGs, 1 to 100.
    """

    name: str
    source: str = "worlds"
    records: str = "images"
    every: int = 10
    gap: int = 10
    min_overlap: float | int = 0.1
    image_size: int = 0
    quality: int = 95

    def __post_init__(self):
        if self.source not in SOURCES:
            raise InputError(f"--source={self.source}: not one of {', '.join(SOURCES)}")
        if self.records not in SOURCES[self.source]:
            raise InputError(f"--records={self.records}: not one of {', '.join(SOURCES[self.source])}")
        for key in ("every", "gap"):
            if getattr(self, key) < 1:
                raise InputError(f"--{key}={getattr(self, key)}: must be 1 or more")
        if not 0 <= self.min_overlap <= 1 or math.isnan(self.min_overlap):
            raise InputError(f"--min_overlap={self.min_overlap:g}: must be from 0 to 1")
        if not 0 <= self.image_size <= 4096:
            raise InputError(f"--image_size={self.image_size}: must be from 0 (as it is) to 4096")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality={self.quality}: must be 1 to 100")

    def values(self) -> dict[str, Any]:
        """The settings as JSON would give them back, without those that have no effect on this kind of record."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {key: value for key, value in values.items() if self.records == "stereo" or key not in _STEREO}


# Settings of stereo records.
_STEREO = ("gap", "min_overlap")


@dataclasses.dataclass(frozen=True)
class Example:
    """A record that was tried: the record itself, or the reason why it is not kept. frames: those it was made of."""

    frames: tuple[int, ...]
    record: records.LabelledImage | records.Stereo | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene to store.

    name: unique in its input.
    input_size: bytes; a scene whose size has changed is read again.
    examples: reads the scene in order, lazily; may raise `sources.scene.SceneProblem`. Picklable.
    """

    name: str
    input_size: int
    examples: Callable[[], Iterator[Example]]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What an input holds: the schema of its records, the names of its classes by their indices, and its scenes."""

    schema: records.Schema
    classes: tuple[str, ...]
    scenes: list[Scene]


def read(input: Path, settings: Settings) -> Labelled:
    """What there is in an input, by `settings.source`.

    Raises:
      InputError: there is nothing of that kind to read.
    """
    return importlib.import_module(f"data_prep.labels.{settings.source}").read(input, settings)
