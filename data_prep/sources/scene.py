"""What every source gives: scenes, which yield samples."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from data_prep.matching import Image
from mimic_jax import files, records
from mimic_jax.command import InputError

# Why a frame of a 3-D scene is left out though nothing is wrong with it.
BLANK_VIEW = "blank view"


class SceneProblem(Exception):
    """Part or all of a scene cannot be read. What was yielded before it stands. The message is the reason counted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A frame as read: RGB, full size; `image` is None where it cannot be decoded. `tick` counts samples from 0.

    problem: why `image` is None, where there is more to say than that.
    """

    number: int
    tick: int
    image: Image | None
    problem: str = "frame cannot be read"


@dataclasses.dataclass(frozen=True, eq=False)
class ReadyPair:
    """A pair that somebody else, or the geometry of a 3-D scene, has put together.

    view1, view2: JPEG bytes, as they are to be stored.
    correspondence: for each patch of view1 the patch of view2, −1 where none; None where nobody knows.
    problem: why there is no such pair (the views are then empty); it is counted.
    """

    view1: bytes
    view2: bytes
    correspondence: Int16[np.ndarray, " patches"] | None = None
    frame1: int = -1
    frame2: int = -1
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene to mine.

    name: unique in its input.
    input_size: bytes of a video, images of a folder, pairs of a listing, −1 of what cannot be read; a scene whose size
      has changed is mined anew.
    samples: reads the frames in order, lazily, or the pairs where the source has ready ones; may raise SceneProblem.
      Picklable, so that workers can have it.
    source: the dataset it is from, where the input says so; None for the name given to the whole input.
    rotation: degrees clockwise that turn its frames upright, a multiple of 90.
    """

    name: str
    input_size: int
    samples: Callable[[], Iterator[Sample] | Iterator[ReadyPair]]
    source: str | None = None
    rotation: int = 0


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
    for current, folders, names in _listed(folder, failed):
        all_folders = set(folders)
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        # A bucket has no links.
        real = os.fspath(current) if files.is_remote(folder) else os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # An output that lies in the input is no scene, neither when it is finished nor before.
        if current != folder and (records.MANIFEST in names or records.PARTS in all_folders):
            folders.clear()
            continue
        visible = (name for name in names if not name.startswith("."))
        yield current, sorted(visible, key=natural_key), not folders


def _listed(folder: Path, failed: Callable[[OSError], None]):
    if files.is_remote(folder):
        # etils drops the scheme on the way.
        scheme = os.fspath(folder).partition("://")[0]
        return (
            (files.as_path(f"{scheme}://{os.fspath(current).removeprefix(f'{scheme}://')}"), folders, names)
            for current, folders, names in folder.walk(on_error=failed)
        )
    walked = os.walk(folder, onerror=failed, followlinks=True)
    return ((Path(current), folders, names) for current, folders, names in walked)
