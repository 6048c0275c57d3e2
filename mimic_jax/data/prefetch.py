"""Batches on the devices before they are needed, and how long the devices had to wait for a batch."""

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
    """Iterates over `put(batch)` for the batches of `source`. A thread keeps `depth` batches ready.

    Errors of the source and of `put` are raised where the batch would have come. `close()` ends the thread and the
    source.
    """

    def __init__(
        self,
        source: Iterator[HostBatch],
        put: Callable[[HostBatch], Batch],
        depth: int = 2,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """
        Args:
          source: batches on the host; its `close()` is called where it has one, as generators do.
          put: moves a batch to the devices.
          depth: how many batches on the devices wait to be taken; one more is on its way.
          clock: seconds from any moment on. It is read when the devices become idle, and when the batch is there.
        """
        self._source, self._put, self._clock = source, put, clock
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def take(self, in_flight: Callable[[], bool]) -> tuple[Batch, float]:
        """The next batch, and the seconds for which the devices had nothing to do because it was not there.

        Waiting counts from the moment when the previous step is done; until then the devices are busy. The error of the
        seconds is about `POLL`. The wait before the first step, when nothing can be in flight, counts too.

        Args:
          in_flight: whether the step dispatched last still runs, such as `lambda: not loss.is_ready()`.

        Raises:
          StopIteration: the source has ended.
          BaseException: what the source or `put` raised.
        """
        idle_since = None
        item = self._next(0.0)
        while item is None:
            # Idle devices stay idle until this batch is dispatched.
            if idle_since is None and not in_flight():
                idle_since = self._clock()
            item = self._next(POLL)
        batch, self._error = item
        if self._error is not None:
            raise self._error
        return batch, 0.0 if idle_since is None else self._clock() - idle_since

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
        """The next batch or error; None where neither comes within `seconds`."""
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
