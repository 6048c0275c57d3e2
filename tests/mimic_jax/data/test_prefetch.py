"""Prefetching against what was put in, and its measure of waiting against the times that were slept."""

import itertools
import threading
import time

import pytest

from mimic_jax.data.prefetch import Prefetch


def endless(seconds=0.0):
    for number in itertools.count():
        time.sleep(seconds)
        yield number


def never():
    return False


def train(source, step_seconds, steps):
    """A loop as the real one, on a device that takes `step_seconds` for a step; the share of time it had no batch."""
    prefetch, done = Prefetch(source, lambda batch: batch), 0.0
    prefetch.take(never)
    begin, stalled = time.perf_counter(), 0.0
    for _ in range(steps):
        # Dispatched: it begins when the device is free. The host runs at most one step ahead.
        before, done = done, max(done, time.perf_counter()) + step_seconds
        time.sleep(max(0.0, before - time.perf_counter()))
        stalled += prefetch.take(lambda: time.perf_counter() < done)[1]  # noqa: B023
    seconds = time.perf_counter() - begin
    prefetch.close()
    return stalled / seconds


def test_a_slow_source_stalls_for_what_it_takes_longer_than_a_step():
    # Of each 80 ms between batches, the device works for 20.
    assert train(endless(0.08), 0.02, 12) == pytest.approx(0.75, abs=0.12)


def test_a_fast_source_does_not_stall():
    assert train(endless(0.002), 0.06, 12) < 0.05


def test_waiting_while_a_step_runs_is_no_stall():
    prefetch = Prefetch(endless(0.15), lambda batch: batch)
    assert prefetch.take(lambda: True) == (0, 0.0)
    batch, stalled = prefetch.take(never)
    assert batch == 1
    assert 0.1 < stalled < 0.4
    time.sleep(0.4)
    assert prefetch.take(never) == (2, 0.0), "it was there"
    prefetch.close()


def test_all_comes_in_order_as_it_was_put():
    prefetch = Prefetch(iter(range(50)), str)
    assert list(prefetch) == [str(number) for number in range(50)]
    with pytest.raises(StopIteration):
        prefetch.take(never)
    prefetch.close()


def test_so_many_are_ready_and_no_more():
    pulled, put = [], []
    prefetch = Prefetch((pulled.append(number) or number for number in range(50)), put.append, depth=3)
    time.sleep(0.3)
    assert len(pulled) == len(put) == 4, "three wait, and one for room"
    next(prefetch)
    time.sleep(0.3)
    assert len(pulled) == 5
    prefetch.close()


@pytest.mark.parametrize("of", ["source", "put"])
def test_errors_come_where_the_batch_would_have(of):
    def source():
        yield from range(2)
        if of == "source":
            raise KeyError("a shard")
        yield 2

    def put(batch):
        if batch == 2:
            raise KeyError("a shard")
        return batch

    prefetch = Prefetch(source(), put)
    assert [next(prefetch), next(prefetch)] == [0, 1]
    for _ in range(2):
        with pytest.raises(KeyError, match="a shard"):
            prefetch.take(never)
    prefetch.close()


@pytest.mark.parametrize("wait", [0.0, 0.2])
def test_closing_ends_the_thread_and_the_source(wait):
    ended = []

    def source():
        try:
            yield from endless()
        finally:
            ended.append(threading.current_thread())

    before = set(threading.enumerate())
    prefetch = Prefetch(source(), lambda batch: batch)
    (thread,) = set(threading.enumerate()) - before
    next(prefetch)
    time.sleep(wait)  # 0.2: the thread waits for room
    prefetch.close()
    assert not thread.is_alive()
    assert ended == [threading.main_thread()]
    prefetch.close()
