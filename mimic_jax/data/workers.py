"""Batches that other processes read: Grain's process workers, and shared memory that they fill for this process.

Grain by itself returns each array in a new block of shared memory. Giving fresh pages to a process can take longer than
decoding what is written there. Here the same pages are used again and again, and Grain returns the batch's number only.
"""

import contextlib
import dataclasses
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
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from mimic_jax.command import InputError, TryAgain

# Batches of each worker that may exist at a time: one being read while others wait. Batches are taken in turn, but on a
# shared machine workers do not keep step.
AHEAD = 3
# Seconds between looks at whether a slot is free.
POLL = 1e-3
# Ctrl-C and a scheduler's SIGTERM go to every process of a job. How to end is for the parent to decide, which may want
# another batch first.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Arrays begin at multiples of this, in bytes: the width of the widest vector instructions, and a cache line.
ALIGNMENT = 64

# Arrays by name; and the shapes and types of the arrays of one record or one batch.
Batch = dict[str, np.ndarray]
Spec = dict[str, jax.ShapeDtypeStruct]
Indices = Int[np.ndarray, " batch"]
Read = Callable[[Batch, Indices, Callable[[], bool]], None]


def read_in_workers(
    indices: grain.MapDataset[Indices],
    read: Read,
    spec: Spec,
    workers: int,
) -> Generator[Batch, None, None]:
    """Reads batches in `workers` processes and gives them in order: worker i reads batches i, i + workers, ….

    The first batch starts the processes. They end when the generator is closed, and when this process ends, however it
    does.

    Args:
      indices: of the examples of each batch.
      read: `read(batch, indices, stop)` fills the arrays of `batch` with the examples at `indices`, and returns early
        once `stop()` says so. It is pickled.
      spec: shapes and types of the arrays of one batch.
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
    slots = Slots(AHEAD * workers, spec)
    # A worker has no batch of its own to prepare meanwhile: there are other workers.
    turns = indices.map_with_index(_Fill(slots, read)).to_iter_dataset(grain.ReadOptions(0, 0))
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
    """Memory that processes share, with room for `count` batches of arrays of any shapes and types.

    Batch number n is in slot n mod count, from `begin(n)` on until `take(n)`. A pickled copy uses the same memory. The
    memory has no name and no limit of its own (that of /dev/shm is low in containers). It is freed when the last
    process that uses it has ended.
    """

    def __init__(self, count: int, spec: Spec):
        self._file = os.memfd_create("batches")
        header, size, _ = _layout(count, spec)
        os.ftruncate(self._file, header + count * size)
        self.__setstate__((f"/proc/{os.getpid()}/fd/{self._file}", count, spec))
        self._turns[:-1] = range(count)

    def __getstate__(self) -> tuple[str, int, Spec]:
        return self._path, self._count, self._spec

    def __setstate__(self, state: tuple[str, int, Spec]) -> None:
        self._path, self._count, self._spec = state
        with open(self._path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        header, size, offsets = _layout(self._count, self._spec)
        # The number of the batch whose turn it is, of each slot; then whether `close` was called.
        self._turns = np.frombuffer(memory, np.int64, self._count + 1)
        self._batches = [
            {
                name: np.ndarray(each.shape, each.dtype, memory, header + slot * size + offsets[name])
                for name, each in self._spec.items()
            }
            for slot in range(self._count)
        ]

    def begin(self, turn: int) -> Batch:
        """Waits until the slot of batch number `turn` is free. Returns its arrays, to be filled."""
        while self._turns[turn % self._count] != turn and not self.closed():
            time.sleep(POLL)
        return self._batches[turn % self._count]

    def take(self, turn: int) -> Batch:
        """A copy of batch number `turn`; its slot is free from then on."""
        batch = {name: array.copy() for name, array in self._batches[turn % self._count].items()}
        self._turns[turn % self._count] = turn + self._count
        return batch

    def close(self) -> None:
        """Ends all waiting and reading."""
        self._turns[-1] = 1
        os.close(self._file)

    def closed(self) -> bool:
        """Whether any process has called `close`."""
        return bool(self._turns[-1])


def _layout(count: int, spec: Spec) -> tuple[int, int, dict[str, int]]:
    """Bytes before the first of `count` slots, bytes of each slot, and where each array begins in a slot."""
    offsets, size = {}, 0
    for name, each in spec.items():
        offsets[name] = size
        size += _aligned(each.size * each.dtype.itemsize)
    return _aligned(8 * (count + 1)), size, offsets


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclasses.dataclass(frozen=True, eq=False)
class _Fill:
    """What a worker does for each of its batches. It returns the batch's number only."""

    slots: Slots
    read: Read

    def __call__(self, turn: int, indices: Indices) -> int:
        self.read(self.slots.begin(turn), indices, self.slots.closed)
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
