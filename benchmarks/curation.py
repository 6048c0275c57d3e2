"""How much time mining spends outside OpenCV: one worker, 20 frames exhaustively and a video by step and adaptively.

    python -m benchmarks.curation --video=clip.mp4

Prints the seconds inside each OpenCV call, the seconds of the whole (from opening the input to the finished dataset,
less process start-up), and two ratios. Nearest neighbours are found here by a product of matrices, which gives what
OpenCV's matcher gives in a fraction of its time. So the whole is held against the calls as OpenCV has them, its matcher
timed on the side on the same descriptors (the target is 1.25 or less); and, stricter, against the calls really made.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# As a worker has it: one thread.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import cv2
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from data_prep import dataset, matching
from data_prep.mining import mine_to_part
from data_prep.settings import Settings, choose
from data_prep.sources import frames, video
from data_prep.sources.scene import Scene
from mimic_jax import command, records
from mimic_jax.command import InputError

FRAMES = 20
OPENCV, MADE = "match, OpenCV's matcher", "match, as here"
CALLS = {
    "VideoCapture": "decode",
    "imdecode": "decode",
    "resize": "resize",
    "cvtColor": "cvtColor",
    "detectAndCompute": "SIFT",
    "gemm": MADE,
    "findHomography": "RANSAC",
    "imencode": "encode",
}


class Timed:
    """An OpenCV object whose methods' seconds are added to `seconds[stage]`."""

    def __init__(self, inner: object, seconds: dict[str, float], stage: str):
        self._inner, self._seconds, self._stage = inner, seconds, stage

    def __getattr__(self, name: str) -> Callable:
        return timed(getattr(self._inner, name), self._seconds, self._stage)


def timed(function: Callable, seconds: dict[str, float], stage: str) -> Callable:
    """`function`, adding its seconds to `seconds[stage]`."""

    @functools.wraps(function)
    def call(*arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[stage] += time.perf_counter() - start

    return call


@contextlib.contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Times OpenCV's calls while inside; yields seconds by stage."""
    seconds: dict[str, float] = collections.defaultdict(float)
    real = {name: getattr(cv2, name) for name in (*CALLS, "SIFT_create") if hasattr(cv2, name)}
    try:
        for name in set(CALLS) - {"VideoCapture", "detectAndCompute"}:
            setattr(cv2, name, timed(real[name], seconds, CALLS[name]))
        product = cv2.gemm

        def product_and_matcher(descriptors1, descriptors2, *arguments, **options):
            start = time.perf_counter()
            cv2.batchDistance(descriptors1, descriptors2, cv2.CV_32F, normType=cv2.NORM_L2, K=2)
            seconds[OPENCV] += time.perf_counter() - start
            return product(descriptors1, descriptors2, *arguments, **options)

        cv2.gemm = product_and_matcher
        cv2.VideoCapture = lambda *arguments: Timed(
            timed(real["VideoCapture"], seconds, "decode")(*arguments), seconds, "decode"
        )
        cv2.SIFT_create = lambda: Timed(real["SIFT_create"](), seconds, "SIFT")
        matching._sift.cache_clear()
        yield seconds
    finally:
        for name, function in real.items():
            setattr(cv2, name, function)
        matching._sift.cache_clear()


def measure(scene: Scene, settings: Settings) -> tuple[dict[str, float], float, int]:
    """Seconds by OpenCV stage, seconds of the whole, and pairs tried."""
    with tempfile.TemporaryDirectory() as folder, clocked() as seconds:
        output, values = Path(folder) / "pairs", settings.values()
        start = time.perf_counter()
        with dataset.opened(output, values):
            dataset.begin_parts(output, values)
            _, entry = mine_to_part(scene, output, settings)
            dataset.assemble(output, values, settings.schema, None, lambda function, items: [*map(function, items)])
        # The matcher on the side is no part of it.
        return dict(seconds), time.perf_counter() - start - seconds[OPENCV], entry["pairs_tried"]


def procedural_video(path: Path) -> None:
    """A camera that slides over a picture of discs: 640×480, 30 frames a second, 20 s."""
    rng = np.random.default_rng(0)
    strip = np.full((480, 640 + 600 * 8, 3), 128, np.uint8)
    for _ in range(4000):
        centre = (int(rng.integers(strip.shape[1])), int(rng.integers(480)))
        cv2.circle(strip, centre, int(rng.integers(4, 40)), rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    writer = cv2.VideoWriter(os.fspath(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (640, 480))
    for frame in range(600):
        writer.write(np.ascontiguousarray(strip[:, 8 * frame : 8 * frame + 640]))
    writer.release()


def main() -> None:
    """Runs the command."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(flags.FLAGS.video or Path(folder) / "procedural.mp4")
        if not flags.FLAGS.video:
            procedural_video(path)
        elif not path.is_file():
            raise InputError(f"{path}: no such file (--video)")
        capture = cv2.VideoCapture(os.fspath(path))
        duration = capture.get(cv2.CAP_PROP_FRAME_COUNT) / max(capture.get(cv2.CAP_PROP_FPS), 1)
        capture.release()
        images = Path(folder) / "frames"
        images.mkdir()
        for sample in itertools.islice(video.read(path, duration / (FRAMES + 1)), FRAMES):
            (images / f"{sample.number}.jpg").write_bytes(records.encode_image(sample.image))
        every = choose("benchmark", source="frames", policy="exhaustive")
        stepped = choose("benchmark", policy="step", step=flags.FLAGS.step)
        adaptive = choose("benchmark", step=flags.FLAGS.step)
        runs = {
            f"{FRAMES} frames, exhaustive": (frames.scenes(images, every)[0], every),
            f"video, every {stepped.step:g} s": (video.scenes(path, stepped)[0], stepped),
            "video, adaptive": (video.scenes(path, adaptive)[0], adaptive),
        }
        # Imports and OpenCV's first calls are start-up.
        measure(video.scenes(path, stepped)[0], dataclasses.replace(stepped, min_overlap=0.0, max_overlap=1.0))
        records.encode_image(np.zeros((8, 8, 3), np.uint8))
        table = Table("seconds", *runs)
        best = {
            name: min((measure(*run) for _ in range(flags.FLAGS.repeats)), key=lambda one: one[1])
            for name, run in runs.items()
        }
        for stage in (*dict.fromkeys(CALLS.values()), OPENCV):
            table.add_row(stage, *(f"{seconds.get(stage, 0):.4f}" for seconds, _, _ in best.values()))
        table.add_section()
        table.add_row("whole", *(f"{whole:.4f}" for _, whole, _ in best.values()))
        table.add_row("pairs tried", *(str(tried) for _, _, tried in best.values()))
        for label, without in (("whole / OpenCV's calls", MADE), ("whole / calls made", OPENCV)):
            ratios = [
                whole / sum(time for stage, time in seconds.items() if stage != without)
                for seconds, whole, _ in best.values()
            ]
            table.add_row(label, *(f"{ratio:.3f}" for ratio in ratios))
        Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_string("video", None, "A video. Default: a procedural one.")
    flags.DEFINE_float("step", 0.5, "Seconds between frames of the second measurement.")
    flags.DEFINE_integer("repeats", 3, "Runs of each; the fastest counts.", lower_bound=1)
    command.run(main)
