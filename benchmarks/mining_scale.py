"""How mining grows: with workers, with the length of a video, and against the way it was published.

    python -m benchmarks.mining_scale

Prints
- the time of the whole command with two workers against one, on the same films (1/2 is the best there is);
- the peak memory of a worker on a video of ten minutes against one of one minute;
- milliseconds a pair here against the published procedure written out plainly: keypoints found anew for both views of
  every pair, and each voting pixel sent through the homography by a call of its own.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks.curation import procedural_video
from data_prep import matching
from data_prep.sources import video
from mimic_jax import command

FILMS = flags.DEFINE_integer("films", 12, "Videos of 20 s that the workers share.", lower_bound=2)
MINUTES = flags.DEFINE_integer("minutes", 10, "Length of the long video; the short one is a tenth.", lower_bound=1)
PAIRS = flags.DEFINE_integer("pairs", 8, "Pairs that the published procedure is timed on.", lower_bound=1)


def mine(films: Path, output: Path, *options: str) -> tuple[float, float]:
    """Seconds of the command, and the peak memory of its largest process, MiB."""
    measured = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    run = [sys.executable, "-m", "data_prep.mine", f"--input={films}", f"--output={output}", *options]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", measured, *run], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stdout) / 1024


def published_pair(image1: np.ndarray, image2: np.ndarray) -> None:
    """The pair test as the published procedure spends its time: nothing kept from one pair to the next."""
    views = [cv2.resize(image, (224, 224)) for image in (image1, image2)]
    sift = cv2.SIFT_create()
    (points1, descriptors1), (points2, descriptors2) = (
        sift.detectAndCompute(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), None) for view in views
    )
    candidates = cv2.BFMatcher().knnMatch(descriptors1, descriptors2, k=2)
    good = [one for one, two in candidates if one.distance < 0.7 * two.distance]
    if len(good) <= 10:
        return
    places = [
        np.float32([points[getattr(one, index)].pt for one in good])
        for points, index in ((points1, "queryIdx"), (points2, "trainIdx"))
    ]
    homography, _ = cv2.findHomography(*places, cv2.RANSAC, 5.0)
    if homography is None:
        return
    rng = np.random.default_rng(0)
    for model in (homography, np.linalg.inv(homography)):
        for row, column in itertools.product(range(14), range(14)):
            votes: dict[int, int] = {}
            for x, y in rng.integers(0, 16, (100, 2)):
                pixel = np.float64([[[16 * column + x, 16 * row + y]]])
                u, v = cv2.perspectiveTransform(pixel, model)[0, 0]
                patch = int(v // 16) * 14 + int(u // 16) if 0 <= u < 224 and 0 <= v < 224 else -1
                votes[patch] = votes.get(patch, 0) + 1
            max(votes, key=votes.get)


def our_pair(first: matching.Features, second: matching.Features) -> None:
    """The pair test here, features at hand."""
    matching.match_features(first, second)


def milliseconds(function, arguments) -> float:
    """Of one call, the median."""
    times = []
    for one in arguments:
        start = time.perf_counter()
        function(*one)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def main() -> None:
    """Runs the benchmark."""
    cv2.setNumThreads(1)
    table = Table("what", "one", "other", "ratio")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        films = folder / "films"
        films.mkdir()
        procedural_video(films / "0.mp4")
        for number in range(1, FILMS.value):
            os.link(films / "0.mp4", films / f"{number}.mp4")
        one, two = (
            mine(films, folder / f"workers{n}", f"--workers={n}", "--policy=exhaustive", "--step=0.5")[0]
            for n in (1, 2)
        )
        table.add_row("workers: 1, 2 (speed-up)", f"{one:.1f} s", f"{two:.1f} s", f"{one / two:.2f}")

        long, short = folder / "long", folder / "short"
        long.mkdir(), short.mkdir()
        # Three copies of the film are a minute.
        loop(films / "0.mp4", short / "a.mp4", 3 * MINUTES.value // 10 or 1)
        loop(films / "0.mp4", long / "a.mp4", 3 * MINUTES.value)
        for policy in ("step", "adaptive"):
            low, high = (
                mine(place, folder / f"{policy}_{place.name}", f"--policy={policy}", "--workers=1")[1]
                for place in (short, long)
            )
            label = f"peak memory, {policy}: {MINUTES.value / 10:g} min, {MINUTES.value} min"
            table.add_row(label, f"{low:.0f} MiB", f"{high:.0f} MiB", f"{high / low:.2f}")

        images = [sample.image for sample in itertools.islice(video.read(films / "0.mp4", 0.5), PAIRS.value + 1)]
        features = [matching.detect(matching.resize(image, 224)) for image in images]
        published = milliseconds(published_pair, itertools.pairwise(images))
        ours = milliseconds(our_pair, itertools.pairwise(features))
        frame = milliseconds(lambda image: matching.detect(matching.resize(image, 224)), [(image,) for image in images])
        # A frame of a video is in two pairs, so that a pair costs one frame's keypoints.
        table.add_row(
            "a pair: as published, here",
            f"{published:.0f} ms",
            f"{ours + frame:.1f} ms",
            f"{published / (ours + frame):.0f}",
        )
        table.add_row("the same, keypoints at hand", f"{published:.0f} ms", f"{ours:.1f} ms", f"{published / ours:.0f}")
    Console().print(table)


def loop(film: Path, path: Path, times: int) -> None:
    """The film's frames so many times over, in one video."""
    images = [sample.image for sample in video.read(film, 1 / 30)]
    writer = cv2.VideoWriter(os.fspath(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, images[0].shape[1::-1])
    for _ in range(times):
        for image in images:
            writer.write(image[..., ::-1])
    writer.release()


if __name__ == "__main__":
    command.run(main)
