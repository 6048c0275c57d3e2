"""Sources of examples, and host batches read from them: shuffled and endless, or of given examples in order.

Nothing here knows what a record holds. `order` decides which examples are in which batch; threads or processes read
them.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Generator, Iterable, Sized
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
from jaxtyping import Int

from mimic_jax.data.order import FOREVER, examples_in_step
from mimic_jax.data.workers import Batch, Indices, Spec, read_in_workers

# Every batch has the indices of its examples under this name.
INDEX = "index"


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Examples readable in any order; index i is the i-th, one dataset after the other.

    lengths: examples of each dataset.
    weights: shares of the datasets in every batch are proportional to these; None: every example is equally likely.
    spec: shapes and types of one record.
    read: `read(index, row)` fills every element of the arrays of `row`, which has the names, shapes and types of
      `spec` (an array of shape () for a number). It is called by several threads at a time, and is pickled for other
      processes. It raises InputError where a record is damaged.
    describe: one line about an example, for messages: dataset/scene, frames, shard and record number.
    fingerprint: differs between any two states of the data.
    about: what there is to say of each dataset, for the workdir's data.json.
    unit: what an example is called, in the plural.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...] | None
    spec: Spec
    read: Callable[[int, Batch], None]
    describe: Callable[[int], str]
    fingerprint: str
    about: list[dict]
    unit: str = "pairs"

    def __post_init__(self) -> None:
        if INDEX in self.spec:
            raise ValueError(f"{INDEX!r} is the name of the examples' indices; give the array another name")

    def __len__(self) -> int:
        return sum(self.lengths)


def batch_spec(spec: Spec, rows: int) -> Spec:
    """Shapes and types of a batch of `rows` records of `spec`: of its arrays, rows first, and of the indices."""
    records = {name: jax.ShapeDtypeStruct((rows, *each.shape), each.dtype) for name, each in spec.items()}
    return records | {INDEX: jax.ShapeDtypeStruct((rows,), np.int32)}


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: Int[np.ndarray, " rows"] | None = None,
    threads: int = 8,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Endless shuffled batches in the order of `order.examples_at`, each with all its rows or with some.

    A batch has the arrays of the source's spec, rows first, and "index", the int32 index of the example in each row.
    What is random about an example in an evaluation is drawn by its index.

    The first batch starts the threads or processes. `close()` of the result ends them, as does the end of this process,
    however it ends.

    Args:
      source: has one example at least.
      batch_size: examples of the global batch.
      seed: decides the order of the examples, together with the source's lengths and weights.
      first_step: the global step of the first batch, from 0.
      rows: rows of each global batch to read; all by default.
      threads: examples that a process reads at the same time.
      workers: processes that read, each of them whole batches in turn. 0: this process reads.

    Raises:
      InputError: from the result: a record is damaged or missing.
      TryAgain: from the result: a worker was killed.
    """
    rows = np.arange(batch_size) if rows is None else rows
    in_step = functools.partial(
        examples_in_step,
        lengths=source.lengths,
        weights=source.weights,
        batch_size=batch_size,
        seed=seed,
        rows=rows,
    )
    indices = grain.MapDataset.range(first_step, FOREVER).map(in_step)
    read, spec = _ReadRows(source.read, threads), batch_spec(source.spec, len(rows))
    return read_in_workers(indices, read, spec, workers) if workers else _read_here(indices, read, spec)


def read_rows(source: Source, indices: Iterable[int | np.integer], threads: int = 8) -> Batch:
    """The examples at given indices as one host batch, in their order.

    It has the arrays of the source's spec, rows first, and "index", the int32 index of the example in each row.

    Args:
      indices: in [0, len(source)).
      threads: examples that are read at the same time.

    Raises:
      InputError: a record is damaged or missing.
    """
    indices = np.fromiter(indices, np.int64)
    batch = _empty(batch_spec(source.spec, len(indices)))
    _ReadRows(source.read, threads)(batch, indices, lambda: False)
    return batch


def describe_rows(source: Source, indices: Iterable[int | np.integer], threads: int = 8) -> list[str]:
    """One line about each of the examples at given indices, for messages.

    Raises:
      InputError: a record cannot be read.
    """
    return list(_pool(threads).map(source.describe, map(int, indices)))


def spread(examples: Sized, count: int) -> list[int]:
    """The indices of `count` examples at even distances, with the first and the last; all where there are no more."""
    return np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int).tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class _ReadRows:
    """Fills a batch with the examples at `indices`. Returns early once `stop()` says so."""

    read: Callable[[int, Batch], None]
    threads: int

    def __call__(self, batch: Batch, indices: Indices, stop: Callable[[], bool]) -> None:
        batch[INDEX][:] = indices
        records = {name: array for name, array in batch.items() if name != INDEX}
        numbers = indices.tolist()

        def read(rows: range) -> None:
            for row in rows:
                if stop():
                    return
                # With `...` a number of a batch is an array too, which can be filled.
                self.read(numbers[row], {name: array[row, ...] for name, array in records.items()})

        parts = min(self.threads, len(numbers))
        if parts == 1:
            read(range(len(numbers)))
        else:
            list(_pool(self.threads).map(read, [range(first, len(numbers), parts) for first in range(parts)]))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One pool of a process, whose threads are shared by batches that are read at the same time."""
    return ThreadPoolExecutor(threads, "read-records")


def _read_here(indices: grain.MapDataset[Indices], read: _ReadRows, spec: Spec) -> Generator[Batch, None, None]:
    """Reads batches in threads of this process, in order; they end when the generator is closed."""
    closed = threading.Event()

    def make(indices: Indices) -> Batch:
        batch = _empty(spec)
        read(batch, indices, closed.is_set)
        return batch

    # Two batches at a time: threads that have finished with the first begin with the second.
    data = iter(indices.map(make).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))
    try:
        yield from data
    finally:
        closed.set()
        data.close()


def _empty(spec: Spec) -> Batch:
    return {name: np.empty(each.shape, each.dtype) for name, each in spec.items()}
