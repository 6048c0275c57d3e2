"""Folders of images: one scene a folder, its images in natural order of their names."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data_prep.matching import Image
from data_prep.sources.scene import Sample, Scene, natural_key, unreadable_folder, walk
from mimic_jax.command import InputError

SUFFIXES = frozenset(".bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())  # noqa: SIM905


def scenes(input: Path, step: float = 1) -> list[Scene]:
    """One scene for each folder that holds images, in natural order; `input` itself where it holds images directly.

    A scene's name is the folder's path inside `input`. A folder with neither images nor folders in it is a scene
    without frames, and one that cannot be listed is a scene that cannot be read, so that they are counted.

    Args:
      input: a folder.
      step: frames from one to the next; a whole number.

    Raises:
      InputError: `step` is not a whole number of frames, `input` is no folder, or there is no image in it.
    """
    if step != int(step) or step < 1:
        raise InputError(f"--step={step:g}: for folders of images, a whole number of frames, 1 or more")
    if not input.is_dir():
        raise InputError(f"{input}: --source=frames needs a folder of images, or of such folders")
    found, unreadable = {}, []
    for folder, files, leaf in walk(input, unreadable):
        images = tuple(name for name in files if Path(name).suffix.lower() in SUFFIXES)
        if images and folder == input:
            found = {input.resolve().name: (folder, images)}
            break
        if images or (leaf and folder != input):
            found[folder.relative_to(input).as_posix()] = (folder, images)
    if not unreadable and not any(images for _, images in found.values()):
        raise InputError(f"{input}: no images in it (looked for {' '.join(sorted(SUFFIXES))})")
    listed = [Scene(name, len(found[name][1]), functools.partial(read, *found[name], int(step))) for name in found]
    listed += [Scene(folder.relative_to(input).as_posix(), -1, unreadable_folder) for folder in unreadable]
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def read(folder: Path, names: tuple[str, ...], step: int = 1) -> Iterator[Sample]:
    """Every step-th image of `names`; an image that cannot be decoded is yielded as None."""
    numbers = frame_numbers(names)
    for tick, index in enumerate(range(0, len(names), step)):
        yield Sample(numbers[index], tick, read_image(folder / names[index]))


def frame_numbers(names: tuple[str, ...]) -> list[int]:
    """The last number in each file name; the position in the list where those are not distinct int32 numbers."""
    found = [re.findall(r"\d+", Path(name).stem) for name in names]
    numbers = [int(digits[-1]) for digits in found if digits]
    if len(set(numbers)) < len(names) or max(numbers, default=0) > np.iinfo(np.int32).max:
        return list(range(len(names)))
    return numbers


def read_image(path: Path) -> Image | None:
    """RGB uint8, turned upright by its EXIF tag; None where the file is not a whole image."""
    try:
        # imread would fill what is missing of a truncated JPEG with grey; imdecode refuses it.
        return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    except (OSError, cv2.error):
        return None
