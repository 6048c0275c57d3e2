"""Textured .glb scenes, filmed from places where somebody could stand: frames for pairs, or pairs outright."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.settings import Settings
from data_prep.sources.scene import (
    BLANK_VIEW,
    ReadyPair,
    Sample,
    Scene,
    SceneProblem,
    natural_key,
    unreadable_folder,
    walk,
)
from data_prep.worlds import covisible, free_space, glb, habitat, panoramas, stage
from mimic_jax import files, records
from mimic_jax.command import InputError

# Places a scene: a run that is killed loses no more than these.
CHUNK = 50
_FRAMES = panoramas.PANORAMAS * panoramas.VIEWS


def scenes(input: Path, settings: Settings) -> list[Scene]:
    """Scenes of at most 50 places for every .glb: `NAME/0000`, `NAME/0001` …, NAME its path in `input` without suffix.

    Left out: `*.semantic.glb`, whose colours are labels, and `*.basis.glb` where the same .glb is there without Basis
    compression. A .glb that cannot be read is one scene, so that it is counted.

    Raises:
      InputError: `input` is no .glb and no folder with one, or settings.renderer is not installed.
    """
    if settings.renderer == "habitat":
        habitat.check_installed()
    if input.is_file():
        return _chunks(input, input.name.removesuffix(".glb"), settings)
    if not input.is_dir():
        raise InputError(f"{input}: --source=scene3d needs a .glb, or a folder of them")
    found, unreadable = [], []
    for folder, names, _ in walk(input, unreadable):
        there = set(names)
        found += [
            folder / name
            for name in names
            if name.lower().endswith(".glb")
            and not name.endswith(".semantic.glb")
            and not (name.endswith(".basis.glb") and name.removesuffix(".basis.glb") + ".glb" in there)
        ]
    if not found and not unreadable:
        raise InputError(f"{input}: no .glb in it")
    listed = [
        scene
        for path in found
        for scene in _chunks(path, path.relative_to(input).as_posix().removesuffix(".glb"), settings)
    ]
    listed += [Scene(folder.relative_to(input).as_posix(), -1, unreadable_folder) for folder in unreadable]
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def read(path: Path, name: str, first: int, last: int, settings: Settings) -> Iterator[Sample] | Iterator[ReadyPair]:
    """Samples first to last − 1 of a .glb's settings.samples; each is the same whatever others are read, and where.

    Policy "panoramas" gives 24 frames a sample: number and tick are 24·sample + 8·panorama + view. Those with too
    little to see have no image, and so has the first of a sample for which no place was found.
    Policy "covisible" gives a pair a sample, frames 2·sample and 2·sample + 1; without views where it is not kept.

    name: what the random numbers of this .glb come from, besides settings.seed.

    Raises:
      SceneProblem: the file cannot be read, or there is nowhere to stand.
    """
    # Not the built-in hash, which differs from process to process.
    key = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8])
    opened = _open(path, key, settings)
    if isinstance(opened, str):
        raise SceneProblem(opened)
    for number in range(first, last):
        # 0: the stream of the scene itself.
        rng = np.random.default_rng([settings.seed, key, 1 + number])
        if settings.policy == "covisible":
            yield _pair(opened, number, settings, rng)
        else:
            yield from _panoramas(opened, number, rng)


def _panoramas(opened: stage.Stage, number: int, rng: np.random.Generator) -> Iterator[Sample]:
    tick = start = _FRAMES * number
    for tick, image in enumerate(panoramas.film(opened, rng), start):
        blank = panoramas.is_blank(image)
        yield Sample(tick, tick, None if blank else image, BLANK_VIEW)
    if tick == start:
        yield Sample(tick, tick, None, "no place found")


def _pair(opened: stage.Stage, number: int, settings: Settings, rng: np.random.Generator) -> ReadyPair:
    frames = {"frame1": 2 * number, "frame2": 2 * number + 1}
    pair = covisible.film(opened, rng)
    if isinstance(pair, str):
        return ReadyPair(b"", b"", problem=pair, **frames)
    return ReadyPair(
        records.encode_image(pair.image1, settings.quality),
        records.encode_image(pair.image2, settings.quality),
        covisible.correspondence(pair, opened.camera, settings.patch_size),
        **frames,
    )


def _chunks(path: Path, name: str, settings: Settings) -> list[Scene]:
    try:
        size = files.size(path)
        (glb.read_header if settings.renderer == "habitat" else glb.check_readable)(path)
    except (InputError, OSError) as error:
        return [Scene(f"{name}/0000", -1, functools.partial(_unreadable, _reason(path, error)))]
    return [
        Scene(
            f"{name}/{number:04d}",
            size,
            functools.partial(read, path, name, first, min(first + CHUNK, settings.samples), settings),
        )
        for number, first in enumerate(range(0, settings.samples, CHUNK))
    ]


def _unreadable(reason: str) -> Iterator[Sample]:
    raise SceneProblem(reason)


@functools.lru_cache(maxsize=1)
def _open(path: Path, key: int, settings: Settings) -> stage.Stage | str:
    """The .glb ready to be filmed, or why it cannot be; kept, because the many scenes of a .glb follow one another."""
    height = float(np.random.default_rng([settings.seed, key, 0]).uniform(free_space.LOWEST, free_space.HIGHEST))
    recipe = covisible if settings.policy == "covisible" else panoramas
    open_stage = habitat.open_stage if settings.renderer == "habitat" else stage.open_stage
    try:
        with files.local(path) as copy:
            return open_stage(copy, height, settings.up, recipe.camera(settings.image_size))
    except (InputError, OSError) as error:
        return _reason(path, error)


def _reason(path: Path, error: InputError | OSError) -> str:
    """An error's words without the file's name, which the scene has."""
    words = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
    if "no free place" in words:
        # Its numbers would make a reason of its own for each scene.
        return "no free place to stand; is the unit metres, and does --up say which axis points up?"
    return " ".join(words.removeprefix(f"{path}: ").split())[:300]
