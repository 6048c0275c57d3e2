"""Videos: one scene a file, sampled every so many seconds."""

import contextlib
import functools
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from data_prep import policies
from data_prep.matching import Image
from data_prep.settings import Settings
from data_prep.sources.scene import Sample, Scene, SceneProblem, natural_key, unreadable_folder, walk
from mimic_jax import files
from mimic_jax.command import InputError

# FFmpeg would also take a file for a playlist or a script, and follow it to other files and to the network.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,asf,flv"
# OpenCV reads these when it first opens a video. A broken file is our one line to report, not FFmpeg's.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", f"protocol_whitelist;file|format_whitelist;{FORMATS}")

SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)

# Seconds since the first frame, NaN where the file does not tell, and a function that gives the picture.
Shown = tuple[float, Callable[[], Image | None]]


def scenes(input: Path, settings: Settings) -> list[Scene]:
    """The videos of a folder, nested ones too, or the one video given, in natural order of their names.

    A scene's name is the file's path inside `input` without its suffix. A folder that cannot be listed is a scene that
    cannot be read, named like the folder with a slash behind, so that it is counted.

    Args:
      input: a video file, or a folder of them.

    Raises:
      InputError: there is no video, or two would have the same name.
    """
    found, unreadable = {}, []
    if input.is_file():
        found[input.stem] = input
    else:
        for folder, names, _ in walk(input, unreadable):
            for path in (folder / name for name in names if Path(name).suffix.lower() in SUFFIXES):
                name = path.relative_to(input).with_suffix("").as_posix()
                if name in found:
                    raise InputError(f"{found[name]} and {path} would both be scene {name!r}: rename one of them")
                found[name] = path
        if not found and not unreadable:
            looked = " ".join(sorted(SUFFIXES))
            raise InputError(f"{input}: no videos in it (looked for {looked}); for images give --source=frames")
    reader = functools.partial(
        read,
        step=settings.step,
        ticks=settings.ticks,
        wants=policies.wants(settings.policy),
        min_length=settings.min_length,
        upright=settings.rotation == "tag",
    )
    listed = [Scene(name, _size(path), functools.partial(reader, path)) for name, path in found.items()]
    listed += [Scene(f"{folder.relative_to(input).as_posix()}/", -1, unreadable_folder) for folder in unreadable]
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def _size(path: Path) -> int:
    """Bytes; −1 where there is no telling, as of a link to nothing."""
    try:
        return files.size(path)
    except OSError:
        return -1


def read(
    path: Path,
    step: float | int = 1.0,
    ticks: int = 1,
    wants: Callable[[int], bool] = policies.every_tick,
    min_length: float | int = 0,
    upright: bool = True,
) -> Iterator[Sample]:
    """The frames nearest to 0, step, 2·step … seconds, decoded in order; every frame where `step` is shorter than one.

    `number` counts the video's own frames from 0, `tick` says which multiple of step / ticks the frame is nearest to.

    Args:
      step: seconds.
      ticks: samples in a step.
      wants: which ticks are decoded; the others are left out.
      min_length: seconds; shorter videos are not read.
      upright: turn frames by the file's rotation tag.

    Raises:
      SceneProblem: the file is no video that can be decoded, is too short, or ends early (after what could be decoded).
    """
    with files.local(path) as here:
        # A pipe or a device would be waited for, for ever.
        if not here.is_file():
            raise SceneProblem("cannot be read")
        with _spelt_in_utf8(here) as path:
            yield from _read_by_opencv(path, step, ticks, wants, min_length, upright)


@contextlib.contextmanager
def _spelt_in_utf8(path: Path) -> Iterator[Path]:
    """The file under a name that OpenCV can take: of bytes that are no UTF-8 it dies."""
    try:
        os.fspath(path.absolute()).encode()
        yield path
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="mimic_jax_") as folder:
            link = Path(folder) / f"video{path.suffix}"
            link.symlink_to(path.absolute())
            yield link


def _read_by_opencv(path: Path, step, ticks, wants, min_length, upright) -> Iterator[Sample]:
    capture = cv2.VideoCapture(os.fspath(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened() or not capture.grab():
            capture.release()
            yield from _read_by_pyav(path, step, ticks, wants, min_length, upright)
            return
        if not upright:
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        rate, declared = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = rate if math.isfinite(rate) and rate > 0 else 30.0
        _check_length(declared / rate if declared > 0 else _count_frames(path) / rate, min_length)

        def decode() -> Image | None:
            decoded, image = capture.retrieve()
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if decoded else None

        def shown() -> Iterator[Shown]:
            grabbed = True
            while grabbed:
                # The container's own clock, because phones record at a varying rate; some streams have none.
                yield capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, decode
                grabbed = capture.grab()

        number = yield from _sampled(shown(), rate, max(step, 1 / rate) / ticks, wants)
        # Containers round their count of frames, or count one that is never shown.
        if number < 0.95 * declared - 1:
            raise SceneProblem("ends before its header says")
    finally:
        capture.release()


def _read_by_pyav(path: Path, step, ticks, wants, min_length, upright) -> Iterator[Sample]:
    """PyAV's FFmpeg has decoders that OpenCV's has not, above all of AV1, which most of the web's videos are by now."""
    if importlib.util.find_spec("av") is None:
        raise SceneProblem("cannot be read by OpenCV; PyAV may (pip install av)")
    import av

    try:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        with av.open(os.fspath(path.absolute()), options=options) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SceneProblem("cannot be read")
            stream.codec_context.thread_count = 1
            rate = float(stream.average_rate or 30)
            seconds = container.duration / av.time_base if container.duration else _count_frames(path) / rate
            _check_length(seconds, min_length)

            def shown() -> Iterator[Shown]:
                for frame in container.decode(stream):
                    yield math.nan if frame.time is None else frame.time, functools.partial(decode, frame)

            def decode(frame) -> Image | None:
                image = frame.to_ndarray(format="rgb24")
                return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))) if upright else image

            number = yield from _sampled(shown(), rate, max(step, 1 / rate) / ticks, wants)
            if number < 0.95 * seconds * rate - 1:
                raise SceneProblem("ends before its header says")
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise SceneProblem("cannot be read") from error


def _sampled(shown: Iterator[Shown], rate: float, every: float, wants: Callable[[int], bool]):
    """Samples of all frames shown; returns how many frames there were."""
    number, last, start, before = 0, -1, None, 0.0
    for clock, decode in shown:
        start = clock if start is None else start
        if clock - start < before - 1:
            # Recordings joined end to end: the clock goes on from here, a step later, so that no pair bridges the cut.
            start, last = clock - before - 2 * every, last + 1
        seconds = clock - start if clock > start else number / rate
        before = max(before, seconds)
        # The frame nearest to the tick; where ticks are denser than frames, the tick nearest to the frame.
        tick = math.floor((seconds + 0.5 * min(every, 1 / rate)) / every)
        if tick > last:
            last = tick
            if wants(tick):
                yield Sample(number, tick, decode())
        number += 1
    return number


def _check_length(seconds: float, min_length: float | int) -> None:
    if seconds < min_length:
        raise SceneProblem(f"shorter than {min_length:g} s")


def _count_frames(path: Path) -> int:
    """By decoding them all: some containers do not say."""
    capture = cv2.VideoCapture(os.fspath(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count
