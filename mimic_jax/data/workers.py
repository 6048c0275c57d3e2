"""Batches that other processes read: Grain's process workers, and memory that they fill and this process empties.

Grain hands over arrays in shared memory of their own, made anew for every batch. To give a fresh page to a process can
take longer than to decode what goes there; here the same pages are used again and again, and Grain hands over which.
"""

import contextlib
import dataclasses
import math
import mmap
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from mimic_jax.command import InputError, TryAgain

# Batches of each worker that may exist at a time: one being read while others wait. Batches are taken in turn, but on a
# shared machine workers do not keep step.
AHEAD = 3
# Seconds between looks at whether a slot is free.
POLL = 1e-3
# Ctrl-C and a scheduler's SIGTERM go to every process of a job. How to end is for the parent to decide, which may want
# another batch first.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Places = Int[np.ndarray, " batch"]
Views = UInt8[np.ndarray, "views batch height width 3"]


def read_in_workers(
    places: grain.MapDataset[Places],
    read: Callable[[Views, Places, Callable[[], bool]], None],
    shape: tuple[int, ...],
    workers: int,
) -> Generator[Views, None, None]:
    """Reads batches in `workers` processes and gives them in order: worker i reads batches i, i + workers, ….

    The first batch starts the processes. They end when the generator is closed, and when this process ends, however it
    does.

    Args:
      places: of each batch.
      read: `read(views, places, stop)` fills `views` with the examples at `places`, and returns early once `stop()`
        says so. It is pickled.
      shape: of the views of one batch.
      workers: at least one.

    Raises:
      InputError: what a worker raises, or that this system has no such memory.
      TryAgain: a worker was killed.
    """
    if not hasattr(os, "memfd_create"):
        raise InputError(f"config.data.workers={workers} needs Linux; here set config.data.workers=0")
    # Grain asks absl for options of its own, which a program without flags has not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # The tracker of shared semaphores tells of those that Ctrl-C leaves to it; it removes them, and that is all.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    slots = Slots(AHEAD * workers, shape)
    # A worker has no batch of its own to prepare meanwhile: there are other workers.
    turns = places.map_with_index(_Fill(slots, read)).to_iter_dataset(grain.ReadOptions(0, 0))
    data = iter(turns.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _begin))
    try:
        with _signals_held():
            turn = next(data)
        while True:
            yield slots.take(turn)
            turn = next(data)
    except RuntimeError as error:
        if not (code := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))):
            raise
        raise TryAgain(
            f"a process that reads data was killed (exit code {code[1]}), mostly for want of memory; "
            "lower config.data.workers, or give the job more memory"
        ) from error
    finally:
        slots.close()
        data.close()


class Slots:
    """Memory that processes share, with room for `count` batches of uint8 views [views, batch, height, width, 3].

    Batch number n lies in slot n mod count, from `begin(n)` on until `take(n)`. A copy that is pickled is the same
    memory. The memory has no name and no limit of its own (that of /dev/shm is low in containers), and is gone with the
    last process that has it.
    """

    def __init__(self, count: int, shape: tuple[int, ...]):
        self._file = os.memfd_create("batches")
        os.ftruncate(self._file, 8 * (count + 1) + count * math.prod(shape))
        self.__setstate__((f"/proc/{os.getpid()}/fd/{self._file}", count, shape))
        self._turns[:-1] = range(count)

    def __getstate__(self) -> tuple[str, int, tuple[int, ...]]:
        return self._path, self._count, self._shape

    def __setstate__(self, state: tuple[str, int, tuple[int, ...]]) -> None:
        self._path, self._count, self._shape = state
        with open(self._path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        # Of each slot the batch whose turn it is; then whether all is over.
        self._turns = np.frombuffer(memory, np.int64, self._count + 1)
        self._views = np.frombuffer(memory, np.uint8, offset=self._turns.nbytes).reshape(self._count, *self._shape)

    def begin(self, turn: int) -> Views:
        """Waits until the slot of batch number `turn` is free. Returns it, to be filled."""
        while self._turns[turn % self._count] != turn and not self.closed():
            time.sleep(POLL)
        return self._views[turn % self._count]

    def take(self, turn: int) -> Views:
        """A copy of batch number `turn`; its slot is free from then on."""
        views = self._views[turn % self._count].copy()
        self._turns[turn % self._count] = turn + self._count
        return views

    def close(self) -> None:
        """Nobody shall wait or read any longer."""
        self._turns[-1] = 1
        os.close(self._file)

    def closed(self) -> bool:
        """Whether any process has called `close`."""
        return bool(self._turns[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class _Fill:
    """What a worker does for each of its batches. What it hands over is the batch's number alone."""

    slots: Slots
    read: Callable[[Views, Places, Callable[[], bool]], None]

    def __call__(self, turn: int, places: Places) -> int:
        self.read(self.slots.begin(turn), places, self.slots.closed)
        if self.slots.closed():
            # Nobody wants it. An orderly end takes a worker long, and Grain would wait for one after the other.
            os._exit(1)
        return turn


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes and threads that are started meanwhile do not get the signals that `_begin` ignores."""
    resource_tracker.ensure_running()  # else the first semaphore starts it, and lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(index: int, count: int) -> None:
    """What a worker does first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # There are other workers for the other cores.
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers."""
    multiprocessing.parent_process().join()
    os._exit(1)
