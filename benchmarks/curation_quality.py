"""How good mining is, against the truth from depth and poses of filmed rooms, for each way of matching.

    python -m benchmarks.curation_quality --rooms=6

Compares frames of each room all with all, as filmed and once more blurred, noisy and squeezed by JPEG. Prints, for
the matchers that can be chosen and for one change to them at a time: how many pairs are kept, what they truly share,
where their patches truly are, and the cost against MIMIC's on the same frames. Then, for each matcher that can be
chosen, the truth for each range of mined overlap.
"""

import collections
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from data_prep import matching
from data_prep.matching import MATCHERS, Image
from data_prep.worlds.filming import Settings, film_scene
from data_prep.worlds.truth import warp_pixels
from mimic_jax import command

ROOMS = flags.DEFINE_integer("rooms", 4, "Rooms to film.", lower_bound=1)
FRAMES = flags.DEFINE_integer("frames", 24, "Frames of each film that are compared, all with all.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 2, "Which rooms.")

EVERY = 4  # of the film's frames, one in so many is compared
SIZE, PATCH = 224, 16
BAND = (0.5, 0.75)
BINS = (0.0, 0.25, 0.5, 0.75, 1.0)

PUBLISHED, ROBUST = MATCHERS["published"], MATCHERS["robust"]
# One change at a time: what is added to "published" (+) and taken from "robust" (−).
TRIED = {
    "+ RootSIFT": dataclasses.replace(PUBLISHED, root_sift=True),
    "+ mutual": dataclasses.replace(PUBLISHED, mutual=True),
    "+ ratio 0.8": dataclasses.replace(PUBLISHED, ratio=0.8),
    "+ 10 px": dataclasses.replace(PUBLISHED, threshold=10.0),
    "+ MAGSAC++": dataclasses.replace(PUBLISHED, estimator="magsac"),
    "+ MAGSAC++ 10 px": dataclasses.replace(PUBLISHED, estimator="magsac", threshold=10.0),
    "+ LO-MSAC": dataclasses.replace(PUBLISHED, estimator="msac"),
    "+ LO-MSAC 10 px": dataclasses.replace(PUBLISHED, estimator="msac", threshold=10.0),
    "− RootSIFT": dataclasses.replace(ROBUST, root_sift=False),
    "− mutual": dataclasses.replace(ROBUST, mutual=False),
    "− ratio 0.8": dataclasses.replace(ROBUST, ratio=PUBLISHED.ratio),
    "− 10 px": dataclasses.replace(ROBUST, threshold=PUBLISHED.threshold),
    "− LO-MSAC": dataclasses.replace(ROBUST, estimator="ransac"),
    "− 8 inliers": dataclasses.replace(ROBUST, min_inliers=0),
}
LEGEND = """\
kept: pairs whose mined overlap is 50–75 %.
true: those of them that truly overlap by 40–90 %.
yield: of the pairs that truly overlap by 50–75 %, those that are kept.
≤ 1 patch: of the patches matched in kept pairs, those whose middle truly lies
  at most a patch, across and down, from the middle of their match.
unseen: those whose middle is hidden or outside in the other view; they are
  among the wrong ones.
rank: correlation of mined with true overlap, where none found is 0.
frame, pair: CPU time of features and of matching; published is 1.
"""


@dataclasses.dataclass(frozen=True)
class Compared:
    """A pair of frames under one matcher.

    mined, true: overlap; mined is NaN where no homography was found, true is the fraction of a view's pixels seen in
      the other, the smaller of both directions.
    errors: of each matched patch, patches from the middle of its match to where its own middle truly lies, the larger
      of across and down; infinite where the middle is not seen in the other view.
    seconds: CPU time of matching.
    """

    mined: float
    true: float
    errors: np.ndarray
    seconds: float

    @property
    def kept(self) -> bool:
        return BAND[0] <= self.mined <= BAND[1]


def spoil(image: Image, rng: np.random.Generator) -> Image:
    """Smeared over 11 pixels along a row or column, with noise of σ = 20, as a JPEG of quality 25."""
    kernel = np.full((1, 11), 1 / 11)
    smeared = cv2.filter2D(image, -1, kernel if rng.random() < 0.5 else kernel.T)
    noisy = np.clip(smeared + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)


def truths(record: dict[str, np.ndarray]) -> list[tuple[float, np.ndarray]]:
    """Of every pair of frames: the true overlap, and where the middle of each patch of view1 lies in view2, as (x, y)
    in pixels of the resized views; NaN where it is not seen there."""
    depth, pose, intrinsics = record["depth"][::EVERY], record["camera_to_world"][::EVERY], record["intrinsics"]
    scale = depth.shape[1] / SIZE
    # cv2.resize keeps the borders of the picture in place, not the middle of its first pixel.
    middle = np.rint((middles() + 0.5) * scale - 0.5).astype(int)
    found = []
    for i, j in itertools.combinations(range(len(depth)), 2):
        position, seen = warp_pixels(depth[i], pose[i], depth[j], pose[j], intrinsics)
        back = warp_pixels(depth[j], pose[j], depth[i], pose[i], intrinsics)[1]
        place = np.where(seen[..., None], (position + 0.5) / scale - 0.5, np.nan)[middle[:, 1], middle[:, 0]]
        found.append((min(seen.mean(), back.mean()), place))
    return found


def middles() -> np.ndarray:
    """The middle of every patch, (x, y) in pixels."""
    row, column = np.divmod(np.arange((SIZE // PATCH) ** 2), SIZE // PATCH)
    return np.stack([column, row], axis=1) * PATCH + (PATCH - 1) / 2


def timed(function: Callable, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """The result, and CPU seconds of this thread: other work on the machine does not count."""
    start = time.thread_time()
    return function(*arguments, **options), time.thread_time() - start


def compare(images: list[Image], truth: list[tuple[float, np.ndarray]]) -> Iterator[tuple[str, list[Compared], float]]:
    """For each matcher: every pair of frames, and CPU seconds of all frames' features."""
    resized = [matching.resize(image, SIZE) for image in images]
    features: dict[str, list] = {name: [] for name in MATCHERS}
    detecting = dict.fromkeys(MATCHERS, 0.0)
    for image, name in in_turns(resized):
        found, seconds = timed(matching.detect, image, name)
        features[name].append(found)
        detecting[name] += seconds
    compared: dict[str, list[Compared]] = {name: [] for name in MATCHERS}
    pairs = list(zip(itertools.combinations(range(len(images)), 2), truth, strict=True))
    for ((i, j), (true, place)), name in in_turns(pairs):
        match, seconds = timed(matching.match_features, features[name][i], features[name][j], matcher=name)
        if isinstance(match, matching.Reason):
            compared[name].append(Compared(np.nan, true, np.empty(0), seconds))
            continue
        matched = match.correspondence >= 0
        errors = np.abs(middles()[match.correspondence[matched]] - place[matched]).max(axis=1) / PATCH
        compared[name].append(Compared(match.overlap, true, np.nan_to_num(errors, nan=np.inf), seconds))
    return ((name, compared[name], detecting[name]) for name in MATCHERS)


def in_turns(items: list) -> Iterator[tuple[Any, str]]:
    """Each item with each matcher. Each is the first as often, because the first finds the caches cold."""
    names = collections.deque(MATCHERS)
    for item in items:
        yield from ((item, name) for name in tuple(names))
        names.rotate(1)


def percent(chosen: np.ndarray) -> str:
    return f"{100 * np.mean(chosen):.1f} %" if len(chosen) else "–"


def by_matcher(title: str, found: dict[str, list[Compared]], detecting: dict[str, float]) -> Table:
    """One row a matcher."""
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("matcher", no_wrap=True)
    for column in ("kept", "true", "yield", "≤ 1 patch", "unseen", "rank", "frame", "pair"):
        table.add_column(column, justify="right", no_wrap=True)
    pair_seconds = {name: sum(pair.seconds for pair in pairs) for name, pairs in found.items()}
    for name, pairs in found.items():
        mined, true, kept = (np.array([getattr(pair, key) for pair in pairs]) for key in ("mined", "true", "kept"))
        errors = np.concatenate([np.empty(0), *(pair.errors for pair in pairs if pair.kept)])
        table.add_row(
            name,
            str(kept.sum()),
            percent((true[kept] >= 0.4) & (true[kept] <= 0.9)),
            percent(kept[(true >= BAND[0]) & (true <= BAND[1])]),
            percent(errors <= 1),
            percent(np.isinf(errors)),
            f"{spearmanr(np.nan_to_num(mined), true).statistic:.3f}",
            f"{detecting[name] / detecting['published']:.2f}",
            f"{pair_seconds[name] / pair_seconds['published']:.2f}",
        )
    return table


def by_overlap(title: str, pairs: list[Compared]) -> Table:
    """One row a range of mined overlap."""
    mined, true = (np.array([getattr(pair, key) for pair in pairs]) for key in ("mined", "true"))
    known = ~np.isnan(mined)
    table = Table("mined overlap", "pairs", "true: mean", "10 %", "90 %", "true in 40–90 %", title=title)

    def row(label: str, chosen: np.ndarray) -> None:
        values = true[chosen]
        if not len(values):
            table.add_row(label, "0", *["–"] * 4)
            return
        low, high = np.quantile(values, [0.1, 0.9])
        inside = ((values >= 0.4) & (values <= 0.9)).mean()
        table.add_row(label, str(len(values)), *(f"{100 * x:.0f} %" for x in (values.mean(), low, high, inside)))

    row("none found", ~known)
    for low, high in itertools.pairwise(BINS):
        row(f"{100 * low:.0f}–{100 * high:.0f} %", (mined >= low) & ((mined < high) | (high == 1)))
    row("kept: 50–75 %", (mined >= BAND[0]) & (mined <= BAND[1]))
    if known.any():
        rank = spearmanr(mined[known], true[known]).statistic
        less = (mined - true)[known]
        table.caption = (
            f"where a homography was found: rank correlation {rank:.3f}, "
            f"mined − true {less.mean():+.3f} on average, spread {less.std():.3f}"
        )
    return table


def main() -> None:
    cv2.setNumThreads(1)
    offered = tuple(MATCHERS)
    MATCHERS.update(TRIED)
    settings = Settings(frames=FRAMES.value * EVERY, seed=SEED.value, ground_truth=True)
    footages = ("as filmed", "blurred, noisy, JPEG")
    found = {footage: {name: [] for name in MATCHERS} for footage in footages}
    detecting = {footage: dict.fromkeys(MATCHERS, 0.0) for footage in footages}
    for room in track(range(ROOMS.value), "rooms"):
        with tempfile.TemporaryDirectory() as folder:
            video = cv2.VideoCapture(str(film_scene(Path(folder), room, settings)))
            images = [video.read()[1][..., ::-1].copy() for _ in range(settings.frames)][::EVERY]
            with np.load(Path(folder) / f"room_{room:04d}.npz") as record:
                truth = truths(dict(record))
        rng = np.random.default_rng(room)
        for footage, seen in zip(footages, (images, [spoil(image, rng) for image in images]), strict=True):
            for name, pairs, seconds in compare(seen, truth):
                found[footage][name] += pairs
                detecting[footage][name] += seconds
    console = Console()
    for footage in footages:
        console.print(by_matcher(f"Rooms {footage}", found[footage], detecting[footage]))
    console.print(LEGEND)
    for name in offered:
        console.print(by_overlap(f"Mined against true: {name}, as filmed", found["as filmed"][name]))


if __name__ == "__main__":
    command.run(main)
