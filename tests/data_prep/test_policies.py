"""Which frames are compared, and how few are held."""

import weakref

import numpy as np

from data_prep.matching import Features, Reason
from data_prep.policies import POLICIES, Comparison, Frame


def frames(ticks):
    features = Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    for tick in ticks:
        yield Frame(10 * tick, tick, np.zeros((1, 1, 3), np.uint8), features)


def run(policy, ticks, inside=lambda first, second: True):
    tried = []

    def compare(first, second):
        tried.append((first.tick, second.tick))
        reason = None if inside(first.tick, second.tick) else Reason.ABOVE_BAND
        return Comparison(first, second, None, reason)

    kept = [(pair.first.tick, pair.second.tick) for pair in POLICIES[policy](frames(ticks), compare)]
    return tried, kept


def test_step_tries_neighbours_and_keeps_those_inside():
    tried, kept = run("step", range(5), lambda first, second: first != 2)
    assert tried == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert kept == [(0, 1), (1, 2), (3, 4)]


def test_step_does_not_bridge_a_lost_frame():
    assert run("step", [0, 1, 3, 4])[0] == [(0, 1), (3, 4)]


def test_exhaustive_tries_every_pair_once_in_time_order():
    tried, kept = run("exhaustive", [0, 1, 3, 7])
    assert sorted(tried) == [(0, 1), (0, 3), (0, 7), (1, 3), (1, 7), (3, 7)]
    assert kept == tried


def test_no_frames_and_one_frame():
    for policy in POLICIES:
        assert run(policy, []) == ([], [])
        assert run(policy, [0]) == ([], [])


def test_step_holds_few_frames_however_long_the_video():
    alive = weakref.WeakSet()

    def endless():
        for frame in frames(range(1000)):
            alive.add(frame)
            yield frame

    most = 0
    for _ in POLICIES["step"](endless(), lambda first, second: Comparison(first, second, None, None)):
        most = max(most, len(alive))
    assert most <= 4
