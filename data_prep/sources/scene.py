"""What every source gives: scenes, which yield samples."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.matching import Image
from mimic_jax.command import InputError


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
    input_size: bytes of a video, images of a folder, −1 of what cannot be read; a scene whose size has changed is
      mined anew.
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


def unreadable_folder() -> Iterator[Sample]:
    """The samples of a scene that stands for a folder that cannot be listed, so that it is counted."""
    raise SceneProblem("folder cannot be read")


def walk(folder: Path, unreadable: list[Path]) -> Iterator[tuple[Path, list[str], bool]]:
    """Each folder from here down, its visible files in natural order, and whether it is a leaf; follows links once.

    Args:
      folder: where to start.
      unreadable: folders further down that cannot be listed are added to it.

    Raises:
      InputError: `folder` itself cannot be listed.
    """

    def failed(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
        unreadable.append(Path(error.filename))

    seen = set()
    for current, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = (name for name in files if not name.startswith("."))
        yield Path(current), sorted(visible, key=natural_key), not folders
