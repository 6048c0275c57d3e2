"""Which frames of a scene are compared, and which pairs are kept.

A policy is a generator `(frames, compare) -> kept comparisons`. It draws frames in order, as late as it can, and holds
on only to those it still needs, so that a scene of any length streams; `compare(first, second)` runs the pair test.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from data_prep.matching import Features, Image, Match, Reason


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One sampled frame. `tick` counts steps from the start of the scene; a frame that is lost leaves a gap in it."""

    number: int
    tick: int
    image: Image
    features: Features


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Two frames and how they match; `reason` is None where the overlap is inside the band."""

    first: Frame
    second: Frame
    match: Match | None
    reason: Reason | None


Compare = Callable[[Frame, Frame], Comparison]


def step(frames: Iterable[Frame], compare: Compare) -> Iterator[Comparison]:
    """Every pair (t, t + step) inside the band. Holds two frames."""
    for first, second in itertools.pairwise(frames):
        if second.tick == first.tick + 1:
            comparison = compare(first, second)
            if comparison.reason is None:
                yield comparison


def exhaustive(frames: Iterable[Frame], compare: Compare) -> Iterator[Comparison]:
    """Every pair (i, j), i < j, inside the band. Holds all frames: about 300 KB each."""
    earlier: list[Frame] = []
    for second in frames:
        for first in earlier:
            comparison = compare(first, second)
            if comparison.reason is None:
                yield comparison
        earlier.append(second)


POLICIES = {"step": step, "exhaustive": exhaustive}
