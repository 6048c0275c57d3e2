"""Folders of images: one scene a folder, its images in natural order of their names."""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep import policies
from data_prep.settings import Settings
from data_prep.sources.images import SUFFIXES, ImageProblem, read_image
from data_prep.sources.scene import Sample, Scene, SceneProblem, natural_key, unreadable_folder, walk
from mimic_jax.command import InputError


def scenes(input: Path, settings: Settings) -> list[Scene]:
    """One scene for each folder that holds images, `input` itself among them, in natural order.

    A scene's name is the folder's path inside `input`, for `input` its own name. A folder with neither images nor
    folders in it is a scene without frames, and one that cannot be listed is a scene that cannot be read, so that they
    are counted. With `settings.folder` only folders of that name are read, and their scenes are named by the folders
    they are in.

    Raises:
      InputError: `input` is no folder, there is no image in it, or two scenes would have the same name.
    """
    if not input.is_dir():
        raise InputError(f"{input}: --source={settings.source} needs a folder of images, or of such folders")
    found, unreadable = {}, []
    for folder, names, leaf in walk(input, unreadable):
        images = tuple(name for name in names if Path(name).suffix.lower() in SUFFIXES)
        if settings.folder:
            if folder.name == settings.folder:
                _add(found, _name(folder.parent, input), folder, images)
        elif images or (leaf and folder != input):
            _add(found, _name(folder, input), folder, images)
    if not unreadable and not any(images for _, images in found.values()):
        where = f"no folder {settings.folder!r} with images in it" if settings.folder else "no images in it"
        raise InputError(f"{input}: {where} (looked for {' '.join(sorted(SUFFIXES))})")
    reader = functools.partial(
        read,
        step=int(settings.step) // settings.ticks,
        wants=policies.wants(settings.policy),
        min_length=settings.min_length,
        upright=settings.rotation == "tag",
    )
    listed = [Scene(name, len(found[name][1]), functools.partial(reader, *found[name])) for name in found]
    listed += [Scene(_name(folder, input), -1, unreadable_folder) for folder in unreadable]
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def _name(folder: Path, input: Path) -> str:
    inside = folder != input and folder.is_relative_to(input)
    return folder.relative_to(input).as_posix() if inside else folder.resolve().name


def _add(found: dict, name: str, folder: Path, images: tuple[str, ...]) -> None:
    if name in found:
        raise InputError(f"{found[name][0]} and {folder} would both be scene {name!r}: rename one of them")
    found[name] = (folder, images)


def read(
    folder: Path,
    names: tuple[str, ...],
    step: int = 1,
    wants: Callable[[int], bool] = policies.every_tick,
    min_length: float | int = 0,
    upright: bool = True,
) -> Iterator[Sample]:
    """Every step-th image of `names`; an image that cannot be decoded is yielded as None.

    Args:
      wants: which of those are read; the others are left out.
      min_length: folders with fewer images are not read.
      upright: turn images by their EXIF tag.

    Raises:
      SceneProblem: there are fewer images than `min_length`.
    """
    if len(names) < min_length:
        raise SceneProblem(f"shorter than {min_length:g} images")
    numbers = frame_numbers(names)
    for tick, index in enumerate(range(0, len(names), step)):
        if wants(tick):
            try:
                yield Sample(numbers[index], tick, read_image(folder / names[index], upright))
            except ImageProblem as problem:
                yield Sample(numbers[index], tick, None, str(problem))


def frame_numbers(names: tuple[str, ...]) -> list[int]:
    """The last number in each file name; the position in the list where those are not distinct int32 numbers."""
    found = [re.findall(r"\d+", Path(name).stem) for name in names]
    numbers = [int(digits[-1]) for digits in found if digits]
    if len(set(numbers)) < len(names) or max(numbers, default=0) > np.iinfo(np.int32).max:
        return list(range(len(names)))
    return numbers
