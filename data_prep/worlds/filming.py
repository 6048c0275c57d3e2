"""One film of one scene, from seed to files: build, save, load back, find a path, render, encode.

Files of a scene are written under other names and moved into place, the .npz last: where it is, the scene is complete.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_prep.worlds import free_space, glb, paths, raycast, rooms
from mimic_jax.command import InputError

# Raised whenever the same settings would give other films, so that old and new are not mixed in one folder.
VERSION = 1
# Where, in the folder of the films, unfinished files are.
DRAFTS = ".partial"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a film depends on, besides the number of its scene.

    size: pixels a side. ground_truth: store depth, normals and instance ids. glb: the file to film, None for rooms of
    our own making. up: the axis that points up in that file, "y" or "z".
    """

    frames: int = 96
    size: int = 256
    seed: int = 0
    fps: float | int = 20.0
    ground_truth: bool = False
    glb: str | None = None
    up: str = "y"


def scene_name(settings: Settings, index: int) -> str:
    """The name that a scene's files share."""
    return f"{Path(settings.glb).stem if settings.glb else 'room'}_{index:04d}"


def film_scene(output: Path, index: int, settings: Settings) -> Path:
    """Films scene number `index` into `output`, unless that was done before. Returns the path of its .mp4.

    Writes NAME.mp4, NAME.npz and, for a room, NAME.glb. The .npz holds
    - `camera_to_world` float64 [frames, 4, 4]: OpenCV camera axes to the axes of the .glb, metres;
    - `intrinsics` float64 [3, 3]: pixels, the middle of the top left one at (0, 0);
    - `fps` float64; `settings`: what the film was made with, JSON;
    and with ground_truth, each 0 where nothing is seen,
    - `depth` float32 [frames, size, size]: metres along the optical axis;
    - `normal` float16 [frames, size, size, 3]: unit, camera axes, facing the camera;
    - `instance` uint16 [frames, size, size]: object ids;
    - `names` text [objects]: the names of the objects' nodes in the .glb, by object id − 1.

    Raises InputError where the folder holds the scene filmed with other settings, or the .glb cannot be filmed.
    """
    name = scene_name(settings, index)
    if is_filmed(output, index, settings):
        return output / f"{name}.mp4"
    draft = output / DRAFTS
    draft.mkdir(parents=True, exist_ok=True)
    source = Path(settings.glb) if settings.glb else draft / f"{name}.glb"
    if not settings.glb:
        source.write_bytes(rooms.build_room(settings.seed, index).export(file_type="glb"))
    world = _read_world_once(source) if settings.glb else glb.read_world(source)
    try:
        poses = camera_path(world, index, settings)
    except InputError as error:
        raise InputError(f"{settings.glb or f'{name} of --seed={settings.seed}'}: {error}") from error
    intrinsics = raycast.pinhole(settings.size)
    record = {
        "camera_to_world": poses,
        "intrinsics": intrinsics,
        "fps": np.float64(settings.fps),
        "settings": np.array(_fingerprint(settings)),
    }
    images = np.empty((settings.frames, settings.size, settings.size, 3), np.uint8)
    if settings.ground_truth:
        record["names"] = np.array(world.names)
        record["depth"] = np.empty(images.shape[:3], np.float32)
        record["normal"] = np.empty(images.shape, np.float16)
        record["instance"] = np.empty(images.shape[:3], np.uint16)
    for number, view in enumerate(views(world, poses, intrinsics, settings.size)):
        images[number] = view.image
        if settings.ground_truth:
            record["depth"][number] = view.depth
            record["normal"][number] = view.normal
            record["instance"][number] = view.instance
    _write_video(draft / f"{name}.mp4", images, settings.fps)
    np.savez(draft / f"{name}.npz", **record)
    for suffix in _suffixes(settings):
        os.replace(draft / f"{name}{suffix}", output / f"{name}{suffix}")
    return output / f"{name}.mp4"


def is_filmed(output: Path, index: int, settings: Settings) -> bool:
    """Whether the scene's files are all there. Raises InputError where they were made with other settings."""
    name = scene_name(settings, index)
    if not all((output / f"{name}{suffix}").is_file() for suffix in _suffixes(settings)):
        return False
    try:
        with np.load(output / f"{name}.npz") as record:
            found = json.loads(str(record["settings"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    wanted = json.loads(_fingerprint(settings))
    for key in sorted(wanted.keys() | found.keys()):
        if found.get(key) != wanted.get(key):
            raise InputError(
                f"{output / name}.npz was filmed with {key}={found.get(key)}, not {wanted.get(key)}: "
                "name another --output, or remove the old films"
            )
    return True


def camera_path(world: glb.World, index: int, settings: Settings) -> Float64[np.ndarray, "frames 4 4"]:
    """The camera-to-world matrices of scene `index`. Raises InputError where the world has no room for it."""
    # 1: a stream of its own, apart from the one that built the room.
    rng = np.random.default_rng([settings.seed, index, 1])
    height = float(rng.uniform(free_space.LOWEST, free_space.HIGHEST))
    free = free_space.find_free_space(world, height, settings.up)
    return paths.plan_path(world, free, settings.frames, settings.fps, rng)


def views(
    world: glb.World, poses: Float64[np.ndarray, "frames 4 4"], intrinsics: Float64[np.ndarray, "3 3"], size: int
) -> Iterator[raycast.View]:
    """Renders one view for every pose."""
    for pose in poses:
        yield raycast.render(world, pose, intrinsics, size)


def _suffixes(settings: Settings) -> tuple[str, ...]:
    """Of a scene's files, in the order in which they are moved into place."""
    return (".mp4", ".npz") if settings.glb else (".glb", ".mp4", ".npz")


def _fingerprint(settings: Settings) -> str:
    """The settings and what is in the .glb, as JSON."""
    fields = dataclasses.asdict(settings) | {"version": VERSION}
    if settings.glb:
        fields["glb"] = _digest_once(settings.glb)
    return json.dumps(fields, sort_keys=True)


# Many films of one large file read it once a process.
_read_world_once = functools.lru_cache(maxsize=1)(glb.read_world)


@functools.lru_cache(maxsize=1)
def _digest_once(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _write_video(path: Path, images: UInt8[np.ndarray, "frames height width 3"], fps: float | int) -> None:
    height, width = images.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    # The writer reports no errors, a full disk included.
    reader = cv2.VideoCapture(str(path))
    written = 0
    while reader.grab():
        written += 1
    reader.release()
    if written != len(images):
        raise OSError(f"{path}: only {written} of {len(images)} frames could be written; is the disk full?")
