"""Videos: one scene a file, sampled every so many seconds."""

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

# Read by OpenCV when it first opens a video: a broken file is our one line to report, not FFmpeg's.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2

from data_prep.sources.scene import Sample, Scene, SceneProblem, natural_key, unreadable_folder, walk
from mimic_jax.command import InputError

SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv .3gp".split())  # noqa: SIM905


def scenes(input: Path, step: float = 1.0) -> list[Scene]:
    """The videos of a folder, nested ones too, or the one video given, in natural order of their names.

    A scene's name is the file's path inside `input` without its suffix. A folder that cannot be listed is a scene that
    cannot be read, named like the folder with a slash behind, so that it is counted.

    Args:
      input: a video file, or a folder of them.
      step: seconds between frames.

    Raises:
      InputError: there is no video, or two would have the same name.
    """
    found, unreadable = {}, []
    if input.is_file():
        found[input.stem] = input
    else:
        for folder, files, _ in walk(input, unreadable):
            for path in (folder / name for name in files if Path(name).suffix.lower() in SUFFIXES):
                name = path.relative_to(input).with_suffix("").as_posix()
                if name in found:
                    raise InputError(f"{found[name]} and {path} would both be scene {name!r}: rename one of them")
                found[name] = path
        if not found and not unreadable:
            raise InputError(f"{input}: no videos in it (looked for {' '.join(sorted(SUFFIXES))})")
    listed = [Scene(name, _size(path), functools.partial(read, path, step)) for name, path in found.items()]
    listed += [Scene(f"{folder.relative_to(input).as_posix()}/", -1, unreadable_folder) for folder in unreadable]
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def _size(path: Path) -> int:
    """Bytes; −1 where there is no telling, as of a link to nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def read(path: Path, step: float = 1.0) -> Iterator[Sample]:
    """The frames nearest to 0, step, 2·step … seconds, decoded in order; every frame where `step` is shorter than one.

    `number` counts the video's own frames from 0.

    Raises:
      SceneProblem: the file is no video OpenCV can open, or ends early (after what could be decoded).
    """
    capture = cv2.VideoCapture(os.fspath(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise SceneProblem("cannot be read")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if math.isfinite(rate) and rate > 0 else 30.0
        step = max(step, 1 / rate)
        declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        number, last_tick, start = 0, -1, None
        while capture.grab():
            # The container's own clock, because phones record at a varying rate; some streams have none.
            clock = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start = clock if start is None else start
            seconds = clock - start if clock > start else number / rate
            tick = math.floor((seconds + 0.5 / rate) / step)
            if tick > last_tick:
                decoded, image = capture.retrieve()
                yield Sample(number, tick, cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if decoded else None)
                last_tick = tick
            number += 1
        # Containers round their count of frames, or count one that is never shown.
        if number < 0.95 * declared - 1:
            raise SceneProblem("ends before its header says")
    finally:
        capture.release()
