"""Which frames are compared, which pairs kept, and how few frames are held: against the rules written out plainly."""

import collections
import itertools
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.matching import Match, Reason
from data_prep.policies import POLICIES, Comparison, Frame, wants
from data_prep.settings import POLICIES_OF, Settings

INSIDE = 0.6


def settings(policy, ticks=1):
    source = next(source for source, policies in POLICIES_OF.items() if policy in policies)
    # In a folder of frames a tick is a frame, so that a step has as many ticks as it has frames.
    return Settings("x", source="frames" if source == "video" else source, policy=policy, step=ticks)


def frames(ticks):
    for tick in ticks:
        yield Frame(10 * tick, tick, np.zeros((1, 1, 3), np.uint8), lambda image: pytest.fail("not to be looked at"))


def judged(first, second, overlap):
    """A comparison with this overlap; None is one that found no match."""
    if overlap is None:
        return Comparison(first, second, None, Reason.TOO_FEW_MATCHES)
    reason = Reason.BELOW_BAND if overlap < 0.5 else Reason.ABOVE_BAND if overlap > 0.75 else None
    return Comparison(first, second, Match(np.eye(3), 20, np.zeros(1, np.int16), overlap), reason)


def run(policy, ticks, overlap=lambda first, second: INSIDE, step=1):
    """(tried, kept) as pairs of ticks, and the policy's counts."""
    tried, counts = [], collections.Counter()

    def compare(first, second):
        tried.append((first.tick, second.tick))
        return judged(first, second, overlap(first.tick, second.tick))

    kept = POLICIES[policy](frames(ticks), compare, settings(policy, step), counts)
    return tried, [(pair.first.tick, pair.second.tick) for pair in kept], counts


def test_step_tries_neighbours_and_keeps_those_inside():
    tried, kept, _ = run("step", range(5), lambda first, second: 0.9 if first == 2 else INSIDE)
    assert tried == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert kept == [(0, 1), (1, 2), (3, 4)]


@pytest.mark.parametrize("policy", ["step", "double_step"])
def test_steps_do_not_bridge_a_lost_frame(policy):
    assert run(policy, [0, 1, 3, 4])[0] == [(0, 1), (3, 4)]


def test_double_step_falls_back_above_the_band_and_moves_on_by_two():
    overlaps = {(0, 1): 0.9, (0, 2): 0.6, (2, 3): 0.9, (2, 4): 0.8, (3, 4): 0.4, (4, 5): 0.6, (5, 6): 0.76}
    tried, kept, _ = run("double_step", range(7), lambda *pair: overlaps[pair])
    assert tried == [(0, 1), (0, 2), (2, 3), (2, 4), (3, 4), (4, 5), (5, 6)]
    assert kept == [(0, 2), (4, 5)]


def test_disjoint_uses_no_frame_twice():
    # With a step of 5 frames: (0, 5), (10, 15), (20, 25).
    tried, kept, _ = run("disjoint", range(6), lambda first, second: 0.2 if first == 2 else INSIDE)
    assert tried == [(0, 1), (2, 3), (4, 5)]
    assert kept == [(0, 1), (4, 5)]
    assert run("disjoint", [0, 2, 3, 5, 6, 7])[0] == [(2, 3), (6, 7)]


def test_blocks_keep_the_lowest_inside_of_first_against_last_ten():
    overlap = {(i, j): 0.45 + 0.4 * ((7 * i + 3 * j) % 101) / 100 for i in range(180) for j in range(180)}
    tried, kept, _ = run("blocks", range(150), lambda *pair: overlap[pair])
    blocks = [(range(60 * b, 60 * b + 10), range(60 * b + 50, 60 * b + 60)) for b in range(2)]
    assert sorted(tried) == sorted(pair for heads, tails in blocks for pair in itertools.product(heads, tails))
    best = [
        min((overlap[pair], pair) for pair in itertools.product(*block) if 0.5 <= overlap[pair] <= 0.75)[1]
        for block in blocks
    ]
    assert [overlap[pair] for pair in kept] == [overlap[pair] for pair in best]
    assert run("blocks", range(60), lambda *pair: 0.4)[1] == []


def test_blocks_need_only_their_ends_decoded():
    wanted = [tick for tick in range(120) if wants("blocks")(tick)]
    assert wanted == [*range(10), *range(50, 70), *range(110, 120)]
    assert run("blocks", wanted) == run("blocks", range(120))
    assert all(wants(policy)(tick) for policy in POLICIES if policy != "blocks" for tick in range(70))


def test_exhaustive_tries_every_pair_once_in_time_order():
    tried, kept, _ = run("exhaustive", [0, 1, 3, 7])
    assert sorted(tried) == [(0, 1), (0, 3), (0, 7), (1, 3), (1, 7), (3, 7)]
    assert kept == tried


def test_best_keeps_the_lowest_overlap_inside():
    overlaps = {(0, 1): 0.7, (0, 2): 0.49, (1, 2): 0.55, (0, 3): None, (1, 3): 0.55, (2, 3): 0.9}
    tried, kept, _ = run("best", range(4), lambda *pair: overlaps[pair])
    assert sorted(tried) == sorted(overlaps)
    assert kept == [(1, 2)]


def test_panoramas_compare_the_first_with_the_others():
    # Views 3 and 20 are blank, and of the second sample everything from the second panorama on.
    ticks = [tick for tick in range(32) if tick not in (3, 20)]
    overlap = {(a, b): 0.5 + 0.01 * ((5 * a + b) % 40) for a in range(8) for b in range(8, 24)}
    tried, kept, _ = run("panoramas", ticks, lambda *pair: overlap[pair])
    assert sorted(tried) == [pair for pair in sorted(overlap) if 3 not in pair and 20 not in pair]
    assert len(kept) == 1
    assert overlap[kept[0]] == min(overlap[pair] for pair in tried)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_frames_and_one_frame(policy):
    assert run(policy, []) == ([], [], {})
    assert run(policy, [0]) == ([], [], {})


def adaptive(ticks, overlap, step=10):
    return run("adaptive", ticks, overlap, step)


def steady(speed):
    """Overlap of a camera that moves on by so much a tick."""
    return lambda first, second: max(0.0, 1 - speed * (second - first))


@given(st.floats(0.004, 0.24), st.integers(1, 12), st.integers(2, 200))
def test_adaptive_finds_a_partner_wherever_there_is_one_in_a_steady_film(speed, step, length):
    overlap = steady(speed)
    tried, kept, counts = adaptive(range(length), overlap, step)
    found = dict(kept)
    for anchor in range(0, length - 1, step):
        later = range(anchor + 1, min(anchor + 8 * step + 1, length))
        partners = [tick for tick in later if 0.5 <= overlap(anchor, tick) <= 0.75]
        assert (anchor in found) == bool(partners), anchor
        assert not partners or found[anchor] in partners
    assert counts["anchors"] == len(range(0, length - 1, step))
    assert counts["kept"] == len(kept)
    assert counts["at the fixed step"] == sum(second - first == step for first, second in kept)
    assert len(tried) == len(set(tried))


@given(st.data())
def test_adaptive_keeps_all_that_step_keeps_whatever_the_film_shows(data):
    length, step = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 8))
    shares = data.draw(st.lists(st.sampled_from([None, 0.2, 0.6, 0.9]), min_size=97, max_size=97))

    def overlap(first, second):
        return shares[(31 * first + second) % 97]

    _, kept, _ = adaptive(range(length), overlap, step)
    fixed = [(t, t + step) for t in range(0, length - step, step) if overlap(t, t + step) == 0.6]
    assert set(fixed) <= set(kept)
    assert all(overlap(*pair) == 0.6 for pair in kept)
    assert all(0 < second - first <= 8 * step for first, second in kept)


def test_adaptive_looks_further_where_the_camera_swings_back():
    # Too little is seen one step on; ten steps further the camera is back near the start.
    def overlap(first, second):
        return {10: 0.1, 60: 0.6}.get(second - first, 0.1 if second - first < 55 else 0.55)

    _, kept, _ = adaptive(range(81), overlap)
    assert 0 in dict(kept)


def test_adaptive_looks_closer_where_the_overlap_is_near_the_band():
    _, kept, _ = adaptive(range(81), lambda first, second: 0.7 if second - first == 11 else 0.8)
    assert dict(kept)[0] == 11


def test_adaptive_goes_on_after_lost_frames():
    ticks = [tick for tick in range(60) if tick not in (10, 11, 30)]
    _, kept, counts = adaptive(ticks, steady(0.035))
    assert [first for first, _ in kept] == [0, 12, 20, 31, 40, 50]
    assert counts["anchors"] == 6


def test_adaptive_spends_little_on_a_camera_that_stands_still():
    tried, kept, _ = adaptive(range(200), lambda first, second: 0.95)
    assert kept == []
    assert len(tried) <= 20 * 5


@pytest.mark.parametrize(
    ("policy", "most"), [("step", 4), ("double_step", 5), ("disjoint", 4), ("blocks", 24), ("adaptive", 85)]
)
def test_few_frames_are_held_however_long_the_video(policy, most):
    alive, held = weakref.WeakSet(), 0

    def endless():
        for frame in frames(range(1500)):
            alive.add(frame)
            yield frame

    wanted = (frame for frame in endless() if wants(policy)(frame.tick))
    shares = steady(0.035)
    for _ in POLICIES[policy](
        wanted, lambda a, b: judged(a, b, shares(a.tick, b.tick)), settings(policy, 10), collections.Counter()
    ):
        held = max(held, len(alive))
    assert policy != "adaptive" or held > 0
    assert held <= most
