"""How mined overlap relates to true co-visibility, on filmed rooms where depth and poses are known.

    python -m benchmarks.overlap_truth --rooms=4

Prints, for each range of mined overlap, what the two views truly share: the fraction of a view's pixels that is seen
in the other (depth-checked, the smaller of both directions).
"""

import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from data_prep import matching
from data_prep.worlds.filming import Settings, film_scene
from data_prep.worlds.truth import warp_pixels
from mimic_jax import command

ROOMS = flags.DEFINE_integer("rooms", 4, "Rooms to film.", lower_bound=1)
FRAMES = flags.DEFINE_integer("frames", 24, "Frames of each film that are compared, all with all.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 2, "Which rooms.")

EVERY = 4  # of the film's frames, one in so many is compared
BINS = (0.0, 0.25, 0.5, 0.75, 1.0)


def compare(room: int, folder: Path) -> list[tuple[float, float]]:
    """(mined, true) overlap of every pair of frames; mined is NaN where no homography was found."""
    settings = Settings(frames=FRAMES.value * EVERY, seed=SEED.value, ground_truth=True)
    video = cv2.VideoCapture(str(film_scene(folder, room, settings)))
    images = [video.read()[1][..., ::-1].copy() for _ in range(settings.frames)][::EVERY]
    truth = np.load(folder / f"room_{room:04d}.npz")
    depth, pose, intrinsics = truth["depth"][::EVERY], truth["camera_to_world"][::EVERY], truth["intrinsics"]
    features = [matching.detect(matching.resize(image, 224)) for image in images]
    found = []
    for i, j in itertools.combinations(range(len(images)), 2):
        match = matching.match_features(features[i], features[j])
        seen = [warp_pixels(depth[a], pose[a], depth[b], pose[b], intrinsics)[1].mean() for a, b in [(i, j), (j, i)]]
        found.append((np.nan if isinstance(match, matching.Reason) else match.overlap, min(seen)))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rooms = [compare(room, Path(folder)) for room in track(range(ROOMS.value), "films")]
    mined, true = np.concatenate(rooms).T
    table = Table("mined overlap", "pairs", "true: mean", "10 %", "90 %", "true in 40–90 %", title="Mined against true")

    def row(label: str, chosen: np.ndarray) -> None:
        values = true[chosen]
        if not len(values):
            table.add_row(label, "0", *["–"] * 4)
            return
        low, high = np.quantile(values, [0.1, 0.9])
        inside = ((values >= 0.4) & (values <= 0.9)).mean()
        table.add_row(label, str(len(values)), *(f"{100 * x:.0f} %" for x in (values.mean(), low, high, inside)))

    row("none found", np.isnan(mined))
    for low, high in itertools.pairwise(BINS):
        row(f"{100 * low:.0f}–{100 * high:.0f} %", (mined >= low) & ((mined < high) | (high == 1)))
    row("kept: 50–75 %", (mined >= 0.5) & (mined <= 0.75))
    Console().print(table)
    known = ~np.isnan(mined)
    print(f"rank correlation where a homography was found: {spearmanr(mined[known], true[known]).statistic:.3f}")
    print(f"mined − true there: mean {(mined - true)[known].mean():+.3f}, spread {(mined - true)[known].std():.3f}")


if __name__ == "__main__":
    command.run(main)
