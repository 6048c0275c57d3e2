"""Which frames of a scene are compared, and which pairs are kept.

A policy is a generator `(frames, compare, settings, counts) -> kept comparisons`. It draws frames in order, as late as
it can, and holds on only to those it still needs, so that a scene of any length streams; `compare(first, second)` runs
the pair test. What it has to tell besides, it adds to `counts`.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

from data_prep.matching import Features, Image, Match, Reason
from data_prep.settings import Settings

# ScanNet's blocks: frames in one, and how many at either end are compared.
BLOCK, ENDS = 60, 10
# How far, in steps, the adaptive policy looks for a partner.
REACH = 8
# Of frames that show nearly the same, the overlap measured differs by as much.
SLACK = 0.1
# Views of a panorama in a 3-D scene.
VIEWS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One sampled frame. `tick` counts samples from the start of the scene; a frame that is lost leaves a gap in it."""

    number: int
    tick: int
    image: Image
    detect: Callable[[Image], Features]

    @functools.cached_property
    def features(self) -> Features:
        """Found once, and only if the frame is compared."""
        return self.detect(self.image)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Two frames and how they match; `reason` is None where the overlap is inside the band."""

    first: Frame
    second: Frame
    match: Match | None
    reason: Reason | None


Frames = Iterable[Frame]
Compare = Callable[[Frame, Frame], Comparison]
Counts = collections.Counter


def step(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """Every pair (t, t + step) inside the band. Holds two frames."""
    for first, second in itertools.pairwise(frames):
        if second.tick == first.tick + 1:
            comparison = compare(first, second)
            if comparison.reason is None:
                yield comparison


def double_step(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """As `step`; a pair that overlaps too much gives way to (t, t + 2 steps), and where that is kept t moves on by two
    steps (MIMIC's rule for ARKitScenes). Holds three frames."""
    window = _Window(frames)
    while first := window.first():
        second, third = window.at(first.tick + 1), window.at(first.tick + 2)
        advance = 1
        if second is not None:
            comparison = compare(first, second)
            if comparison.reason is Reason.ABOVE_BAND and third is not None:
                comparison = compare(first, third)
                advance = 2 if comparison.reason is None else 1
            if comparison.reason is None:
                yield comparison
        window.drop_before(first.tick + advance)


def disjoint(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """Pairs (t, t + step), then t moves on by two steps, so that no frame is in two pairs (MIMIC's rule for CO3D, with
    a step of 5 frames). Holds two frames."""
    first = None
    for frame in frames:
        if frame.tick % 2 == 0:
            first = frame
        elif first is not None and frame.tick == first.tick + 1:
            comparison = compare(first, frame)
            if comparison.reason is None:
                yield comparison


def blocks(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """Of each 60 frames the first 10 are compared with the last 10, and the pair of the lowest overlap inside the band
    is kept (MIMIC's rule for ScanNet). Of a last block that is cut short, what there is of both. Holds 20 frames."""
    for _, block in itertools.groupby(frames, lambda frame: frame.tick // BLOCK):
        block = list(block)
        heads = [frame for frame in block if frame.tick % BLOCK < ENDS]
        tails = [frame for frame in block if frame.tick % BLOCK >= BLOCK - ENDS]
        yield from _lowest(compare(first, second) for first in heads for second in tails)


def wants(policy: str) -> Callable[[int], bool]:
    """Which ticks a policy looks at; the frames of others need not be decoded."""
    return _in_block_ends if policy == "blocks" else every_tick


def every_tick(tick: int) -> bool:
    """True."""
    return True


def _in_block_ends(tick: int) -> bool:
    return tick % BLOCK < ENDS or tick % BLOCK >= BLOCK - ENDS


def exhaustive(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """Every pair (i, j), i < j, inside the band. Holds all frames: about 300 KB each."""
    return (comparison for comparison in _all(frames, compare) if comparison.reason is None)


def best(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """Of all pairs (i, j), i < j, the one with the lowest overlap inside the band (MIMIC's rule for DeMoN)."""
    return _lowest(_all(frames, compare))


def adaptive(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """For a frame at every step, a partner inside the band, wherever one is found within 8 steps.

    The frame one step later is tried first, so that everything `step` keeps is kept. After that the gap is halved
    between one whose overlap was above the band and one where it was below, or where nothing matched. Where that finds
    none, because the camera does not move steadily, more gaps of the whole range are tried; not where it stands still.
    Holds the frames of 8 steps, and looks for keypoints only in those it compares.

    Counts "anchors", those "kept", and of them those kept "at the fixed step".
    """
    window, gap, last = _Window(frames), settings.ticks, -1
    while first := window.first():
        # A step may begin with a lost frame.
        if first.tick // gap > last:
            last = first.tick // gap
            window.fill(first.tick + REACH * gap)
            if len(window.frames) > 1:
                counts["anchors"] += 1
                found = _search(first, window.frames[1:], compare, gap, settings.max_overlap + SLACK)
                if found is not None:
                    counts["kept"] += 1
                    counts["at the fixed step"] += found.second.tick == first.tick + gap
                    yield found
        window.drop_before(first.tick + 1)


def panoramas(frames: Frames, compare: Compare, settings: Settings, counts: Counts) -> Iterator[Comparison]:
    """Of every three panoramas A, B and C of 8 views each, the pair (A, B) or (A, C) with the lowest overlap inside
    the band (MIMIC's rule for 3-D scenes). Ticks count the views. Holds 24 frames."""
    for _, sample in itertools.groupby(frames, lambda frame: frame.tick // (3 * VIEWS)):
        sample = list(sample)
        heads = [frame for frame in sample if frame.tick % (3 * VIEWS) < VIEWS]
        others = [frame for frame in sample if frame.tick % (3 * VIEWS) >= VIEWS]
        yield from _lowest(compare(first, second) for first in heads for second in others)


def _all(frames: Frames, compare: Compare) -> Iterator[Comparison]:
    earlier: list[Frame] = []
    for second in frames:
        for first in earlier:
            yield compare(first, second)
        earlier.append(second)


def _lowest(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """The first of those with the lowest overlap inside the band, if any is inside."""
    lowest = None
    for comparison in comparisons:
        if comparison.reason is None and (lowest is None or comparison.match.overlap < lowest.match.overlap):
            lowest = comparison
    if lowest is not None:
        yield lowest


def _search(first: Frame, later: list[Frame], compare: Compare, gap: int, still: float) -> Comparison | None:
    """The first partner of `first` found inside the band; none is sought where no overlap is below `still`."""
    places = [frame.tick - first.tick for frame in later]
    tried: dict[int, float] = {}

    def probe(place: int) -> Comparison:
        comparison = compare(first, later[place])
        tried[place] = comparison.match.overlap if comparison.match else 0.0
        return comparison

    # Below `near` the views overlap too much, from `far` on too little.
    near, far = -1, len(places)
    place = next((i for i, ticks in enumerate(places) if ticks >= gap), len(places) - 1)
    while near < place < far:
        comparison = probe(place)
        if comparison.reason is None:
            return comparison
        if comparison.reason is Reason.ABOVE_BAND:
            near = place
        else:
            far = place
        if far == len(places):
            # Nothing too far has been seen: twice the gap.
            ahead = 2 * places[near]
            place = next((i for i in range(near + 1, far) if places[i] >= ahead), far - 1)
        else:
            place = (near + far) // 2
    if min(tried.values()) > still:
        return None
    # The camera swings back, or a blurred frame matched nothing, or the overlap is near the band's end.
    for ticks in _spread(places[-1]):
        place = min(range(len(places)), key=lambda i: abs(places[i] - ticks))
        if place not in tried:
            comparison = probe(place)
            if comparison.reason is None:
                return comparison
    return None


def _spread(furthest: int) -> list[int]:
    """Gaps over the whole range, each half as large again as the one before."""
    gaps = [1.0]
    while gaps[-1] * 1.5 <= furthest:
        gaps.append(gaps[-1] * 1.5)
    return [round(gap) for gap in gaps]


class _Window:
    """The frames from a tick on, drawn only when asked for."""

    def __init__(self, frames: Frames):
        self._rest = iter(frames)
        self.frames: list[Frame] = []

    def fill(self, tick: int) -> None:
        """Draws all frames up to `tick`."""
        while not self.frames or self.frames[-1].tick < tick:
            frame = next(self._rest, None)
            if frame is None:
                return
            self.frames.append(frame)

    def first(self) -> Frame | None:
        if not self.frames:
            self.fill(0)
        return self.frames[0] if self.frames else None

    def at(self, tick: int) -> Frame | None:
        self.fill(tick)
        return next((frame for frame in self.frames if frame.tick == tick), None)

    def drop_before(self, tick: int) -> None:
        self.frames = [frame for frame in self.frames if frame.tick >= tick]


POLICIES = {
    policy.__name__: policy for policy in (adaptive, step, double_step, disjoint, blocks, exhaustive, best, panoramas)
}
