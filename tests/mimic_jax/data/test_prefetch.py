"""Prefetching against what was put in, and its measure of waiting against a clock that the test moves."""

import itertools
import threading
import time

import pytest

from mimic_jax.data.prefetch import Prefetch


def never():
    return False


class Simulated:
    """A source that takes `batch_seconds` for a batch, and a device that takes `step_seconds` for a step.

    The test moves the clock from one event to the next: no event depends on how fast threads run. `arrive` lets the
    source yield a batch, and returns when the batch is ready to be taken.
    """

    def __init__(self, batch_seconds, step_seconds):
        self.batch_seconds, self.step_seconds = batch_seconds, step_seconds
        self.now, self.free, self.next_batch, self.over = 0.0, 0.0, batch_seconds, False
        self.go, self.asked = threading.Semaphore(0), threading.Semaphore(0)
        self.prefetch = Prefetch(self.source(), lambda batch: batch, clock=self.clock)
        assert self.asked.acquire(timeout=60)

    def source(self):
        for number in itertools.count():
            self.asked.release()
            assert self.go.acquire(timeout=60)
            if self.over:
                return
            yield number

    def arrive(self):
        self.now = max(self.now, self.next_batch)
        self.next_batch += self.batch_seconds
        self.go.release()
        assert self.asked.acquire(timeout=60)

    def clock(self):
        """The time. When the device has just become idle, the next event is the next batch."""
        now, becomes_idle, self.busy = self.now, self.busy, False
        if becomes_idle:
            self.arrive()
        return now

    def in_flight(self):
        """Moves the clock to the next event: the end of the step, or the next batch."""
        if self.free < self.next_batch:
            self.now = max(self.now, self.free)
            return False
        self.arrive()
        return True

    def train(self, steps):
        """Seconds without a batch in each step."""
        stalls = []
        for _ in range(steps):
            if self.next_batch <= self.now:  # arrived while the host was waiting for the device
                self.arrive()
            self.busy = True
            stalls.append(self.prefetch.take(self.in_flight)[1])
            # The host runs at most one step ahead of the device.
            before, self.free = self.free, max(self.free, self.now) + self.step_seconds
            self.now = max(self.now, before)
        self.over = True
        self.go.release()
        self.prefetch.close()
        return stalls


def test_a_slow_source_stalls_for_what_it_takes_longer_than_a_step():
    assert Simulated(batch_seconds=80.0, step_seconds=20.0).train(12) == [80.0] + 11 * [60.0]


def test_a_fast_source_does_not_stall():
    assert Simulated(batch_seconds=2.0, step_seconds=60.0).train(12) == [2.0] + 11 * [0.0]


def test_waiting_while_a_step_runs_is_no_stall():
    """Each batch comes just when the step before ends, after the loop has waited for it all the time."""
    assert Simulated(batch_seconds=70.0, step_seconds=70.0).train(5) == [70.0, 0.0, 0.0, 0.0, 0.0]


def test_all_comes_in_order_as_it_was_put():
    prefetch = Prefetch(iter(range(50)), str)
    assert list(prefetch) == [str(number) for number in range(50)]
    with pytest.raises(StopIteration):
        prefetch.take(never)
    prefetch.close()


def test_so_many_are_ready_and_no_more():
    pulled, put = [], []
    prefetch = Prefetch((pulled.append(number) or number for number in range(50)), put.append, depth=3)
    for expected in (4, 5):  # three wait, and one for room; then one of them is taken
        deadline = time.monotonic() + 60
        while len(put) < expected:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)  # time for one more, which must not come
        assert len(pulled) == len(put) == expected
        next(prefetch)
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
            yield from itertools.count()
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
