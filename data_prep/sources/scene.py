"""What every source gives: scenes, which yield samples."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.matching import Image


class SceneProblem(Exception):
    """Part or all of a scene cannot be read. What was yielded before it stands. The message is the reason counted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A frame as read: RGB, full size; `image` is None where it cannot be decoded. `tick` counts steps from 0."""

    number: int
    tick: int
    image: Image | None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene to mine.

    name: unique in its input.
    input_size: bytes of a video, images of a folder; a scene whose size has changed is mined anew.
    samples: reads the frames in order, lazily; may raise SceneProblem. Picklable, so that workers can have it.
    """

    name: str
    input_size: int
    samples: Callable[[], Iterator[Sample]]


def natural_key(name: str) -> tuple:
    """Sorts `frame10` after `frame9`: runs of digits compare as numbers."""
    pieces = re.split(r"(\d+)", name)
    pieces[1::2] = map(int, pieces[1::2])
    return tuple(pieces), name


def walk(folder: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """Each folder from here down, its visible files in natural order, and whether it is a leaf; follows links once."""
    seen = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = (name for name in files if not name.startswith("."))
        yield Path(current), sorted(visible, key=natural_key), not folders
