"""What the adaptive policy finds, against a fixed step and against trying everything.

    python -m benchmarks.adaptive_yield --videos=clips

For a frame at every step of each video: whether the frame a step later is inside the band, whether any frame within
8 steps is (all are tried), and whether the adaptive policy found one, and after how many tests.
"""

import collections
import functools
import tempfile
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_prep import matching, mining, policies, sources
from data_prep.policies import REACH, Frame
from data_prep.settings import Settings, choose
from data_prep.worlds.filming import Settings as Filming
from data_prep.worlds.filming import film_scene
from mimic_jax import command, files

VIDEOS = flags.DEFINE_string("videos", None, "A video or a folder of them. Default: films of rooms.")
ROOMS = flags.DEFINE_integer("rooms", 4, "Rooms to film where no videos are given.", lower_bound=1)
FRAMES = flags.DEFINE_integer("frames", 400, "Frames of each film, 20 a second.", lower_bound=2)
STEP = flags.DEFINE_float("step", 1.0, "Seconds.", lower_bound=0.01)


def frames_of(scene: sources.scene.Scene, settings: Settings) -> list[Frame]:
    """All sampled frames of a video."""
    detect = functools.partial(matching.detect, matcher=settings.matcher)
    return [
        Frame(sample.number, sample.tick, mining.prepare(sample.image, settings), detect)
        for sample in scene.samples()
        if sample.image is not None
    ]


def count(frames: list[Frame], settings: Settings) -> collections.Counter:
    """Anchors, those with a partner by each rule, and the tests that each rule made."""
    known: dict[tuple[int, int], policies.Comparison] = {}
    counts: collections.Counter = collections.Counter()

    def compare(first: Frame, second: Frame) -> policies.Comparison:
        pair = (first.tick, second.tick)
        if pair not in known:
            known[pair] = mining.match_frames(first, second, settings, mining.Tally())
        counts[rule] += 1
        return known[pair]

    rule = "adaptive: tests"
    found = {pair.first.tick for pair in policies.adaptive(frames, compare, settings, collections.Counter())}
    gap = settings.ticks
    anchors = {frame.tick // gap: frame for frame in reversed(frames[:-1])}.values()
    counts["anchors"] = len(anchors)
    rule = "all tried: tests"
    for anchor in anchors:
        later = [frame for frame in frames if anchor.tick < frame.tick <= anchor.tick + REACH * gap]
        inside = {frame.tick for frame in later if compare(anchor, frame).reason is None}
        counts["fixed step"] += anchor.tick + gap in inside
        counts["all tried"] += bool(inside)
        counts["adaptive"] += anchor.tick in found
    counts["fixed step: tests"] = counts["anchors"]
    return counts


def main() -> None:
    """Runs the benchmark."""
    settings = choose("benchmark", step=STEP.value)
    with tempfile.TemporaryDirectory() as folder:
        place = files.as_path(VIDEOS.value or folder)
        if not VIDEOS.value:
            filming = Filming(frames=FRAMES.value, seed=3, fps=20)
            for room in track(range(ROOMS.value), "filming"):
                film_scene(Path(folder), room, filming)
        total: collections.Counter = collections.Counter()
        for scene in track(sources.scenes(place, settings), "comparing"):
            total += count(frames_of(scene, settings), settings)
    table = Table("rule", "anchors with a partner", "tests an anchor", title=f"{total['anchors']} anchors")
    for rule in ("fixed step", "adaptive", "all tried"):
        share, tests = total[rule] / total["anchors"], total[f"{rule}: tests"] / total["anchors"]
        table.add_row(rule, f"{total[rule]} ({share:.0%})", f"{tests:.1f}")
    Console().print(table)


if __name__ == "__main__":
    command.run(main)
