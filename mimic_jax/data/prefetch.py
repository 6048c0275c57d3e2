"""Batches on the devices before they are needed, and how long the devices had to wait where they were not."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

HostBatch = TypeVar("HostBatch")
Batch = TypeVar("Batch")

# Seconds between looks at whether the devices are still busy.
POLL = 1e-3


class Prefetch(Generic[Batch]):
    """Iterates over `put(batch)` for the batches of `source`, of which a thread keeps `depth` ready.

    Errors of the source and of `put` come out where the batch would have. `close()` ends the thread and the source.
    """

    def __init__(self, source: Iterator[HostBatch], put: Callable[[HostBatch], Batch], depth: int = 2):
        """
        Args:
          source: batches on the host; its `close()` is called where it has one, as generators do.
          put: a batch's way to the devices.
          depth: how many batches on the devices wait to be taken; one more is on its way.
        """
        self._source, self._put = source, put
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def take(self, in_flight: Callable[[], bool]) -> tuple[Batch, float]:
        """The next batch, and the seconds for which the devices had nothing to do because it was not there.

        Waiting for the batch counts from the moment when the step before is done: until then the devices are busy. The
        seconds are right to `POLL` or so. What comes before the first step, when nothing can be in flight, counts too.

        Args:
          in_flight: whether the step that was dispatched last still runs, such as `lambda: not loss.is_ready()`.

        Raises:
          StopIteration: the source has ended.
          BaseException: what the source or `put` raised.
        """
        idle_since = None
        item = self._next(0.0)
        while item is None:
            # Once they are idle, they stay so until this batch is dispatched.
            if idle_since is None and not in_flight():
                idle_since = time.perf_counter()
            item = self._next(POLL)
        batch, self._error = item
        if self._error is not None:
            raise self._error
        return batch, 0.0 if idle_since is None else time.perf_counter() - idle_since

    def __iter__(self) -> "Prefetch[Batch]":
        return self

    def __next__(self) -> Batch:
        return self.take(lambda: False)[0]

    def close(self) -> None:
        """Ends the thread and closes the source. Batches that were ready are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(POLL)
        if hasattr(self._source, "close"):
            self._source.close()

    def _next(self, seconds: float) -> tuple[Batch | None, BaseException | None] | None:
        """The next batch or error, once there is one; None where there is none for so long."""
        if self._error is not None:
            return None, self._error
        try:
            return self._ready.get(timeout=seconds)
        except queue.Empty:
            return None

    def _fill(self) -> None:
        try:
            for batch in self._source:
                if self._closed.is_set():
                    return
                self._ready.put((self._put(batch), None))
            self._ready.put((None, StopIteration()))
        except BaseException as error:
            self._ready.put((None, error))
