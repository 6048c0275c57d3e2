"""Records → uint8 batches, on the host: read, decode, resize. All else happens on the accelerator (`augment`).

Which examples come, and in which order, is `order`'s to say; here they are read, by threads or by processes.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from jaxtyping import Int, UInt8

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data import order
from mimic_jax.data.mixture import Examples, Mixture, all_examples, record_source
from mimic_jax.data.workers import Places, Views, read_in_workers

Batch = dict[str, UInt8[np.ndarray, "batch height width 3"]]

VIEWS = ("view1", "view2")

# Records read at the same time by read_pairs: a bucket takes its time for each.
READERS = 16


def read_views(pair: records.Pair, size: tuple[int, int]) -> dict[str, UInt8[np.ndarray, "{size[0]} {size[1]} 3"]]:
    """Both views of a pair, by name, as `read_view` gives them."""
    return {name: read_view(pair, name, size) for name in VIEWS}


def read_view(pair: records.Pair, name: str, size: tuple[int, int]) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """One view of a pair, `name` being view1 or view2, resized to `size` (height, width) where it is not that already.

    Raises:
      InputError: the view is no image that OpenCV can decode.
    """
    try:
        view = records.decode_image(getattr(pair, name))
    except ValueError as error:
        raise InputError(
            f"{name} of {pair.source}/{pair.scene}, frames {pair.frame1} and {pair.frame2}, is damaged ({error}); "
            "mine the dataset again"
        ) from error
    return records.resize(view, size)


def batches(
    examples: Examples,
    *,
    size: tuple[int, int],
    views: Sequence[str] = VIEWS,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: Int[np.ndarray, " rows"] | None = None,
    threads: int = 8,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Endless shuffled batches, in the order of `order.in_order`; of each all rows, or some.

    The first batch starts the threads or processes; `close()` of the result ends them. They also end with this process,
    however it ends.

    Args:
      examples: which pairs; at least one.
      size: views are resized to this height and width, in pixels.
      views: names of those that are decoded; batches have no others.
      batch_size: pairs of the global batch.
      seed: decides the order of examples, with `batch_size` and the examples.
      first_step: the global step that the first batch belongs to.
      rows: which of each global batch; all by default.
      threads: how many examples a process reads at the same time.
      workers: how many processes read, each whole batches in turn. 0: this process does.

    Raises:
      InputError: from the result: a record or a view is damaged or missing, or a worker has been killed.
    """
    rows = np.arange(batch_size) if rows is None else rows
    places = order.rows_of_steps(
        examples,
        batch_size=batch_size,
        seed=seed,
        first_step=first_step,
        rows=rows,
    )
    read = _Read(_Records.of(examples), views, size, threads)
    shape = (len(views), len(rows), *size, 3)
    data = read_in_workers(places, read, shape, workers) if workers else _read_here(places, read, shape)
    return _batches(data, views)


def read_pairs(examples: Examples | records.Dataset, indices: Sequence[int]) -> list[records.Pair]:
    """The pairs at the given places of the examples, or of a dataset.

    Raises:
      InputError: a record cannot be read.
    """
    if isinstance(examples, records.Dataset):
        examples = all_examples(Mixture((examples,)))
    stored = _Records.of(examples)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(stored.read, stored.numbers(np.asarray(indices, int)).tolist()))


def describe(examples: Examples, indices: Sequence[int]) -> list[str]:
    """The examples at the given places, for a person: source and scene, frames, shard, and the record's number in it.

    Raises:
      InputError: a record cannot be read.
    """
    stored = _Records.of(examples)
    numbers = stored.numbers(np.asarray(indices, int)).tolist()
    return [
        f"{pair.source}/{pair.scene}, frames {pair.frame1} and {pair.frame2} ({stored.locate(number)})"
        for number, pair in zip(numbers, read_pairs(examples, indices), strict=True)
    ]


def spread(examples: Examples, count: int) -> list[int]:
    """The places of `count` examples spread evenly, first and last among them; of all where there are no more."""
    return np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int).tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """The records of a mixture, as a worker gets them: pickled, they leave behind the files that are open."""

    examples: Examples
    source: grain.sources.ArrayRecordDataSource

    @classmethod
    def of(cls, examples: Examples) -> "_Records":
        try:
            return cls(examples, record_source(examples.mixture.datasets))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"a shard cannot be read ({error}); copy it again or mine again") from error

    def numbers(self, places: Int[np.ndarray, " places"]) -> Int[np.ndarray, " places"]:
        """Where the examples at `places` lie among all records, one dataset after the other."""
        numbers, first, first_place = np.zeros_like(places), 0, 0
        lengths = self.examples.lengths()
        for dataset, within, length in zip(self.examples.mixture.datasets, self.examples.indices, lengths, strict=True):
            own = (first_place <= places) & (places < first_place + length)
            rows = places[own] - first_place
            numbers[own] = first + (rows if within is None else within[rows])
            first += len(dataset)
            first_place += length
        return numbers

    def read(self, number: int) -> records.Pair:
        try:
            return records.decode(self.source[number])
        except (RuntimeError, ValueError) as error:  # array_record has no exception of its own
            raise InputError(
                f"{self.locate(number)} cannot be read ({error}); copy the shard again or mine again"
            ) from error

    def locate(self, number: int) -> str:
        for dataset in self.examples.mixture.datasets:
            for shard, length in zip(dataset.shards, dataset.shard_lengths, strict=True):
                if number < length:
                    return f"record {number} of {shard}"
                number -= length
        raise IndexError(number)


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """Fills views [views, batch, height, width, 3] with those of the given names of the examples at places."""

    stored: _Records
    names: Sequence[str]
    size: tuple[int, int]
    threads: int

    def __call__(self, views: Views, places: Places, stop: Callable[[], bool]) -> None:
        numbers = self.stored.numbers(places).tolist()

        def read(rows: range) -> None:
            for row in rows:
                if stop():
                    return
                pair = self.stored.read(numbers[row])
                for view, name in zip(views, self.names, strict=True):
                    view[row] = read_view(pair, name, self.size)

        parts = min(self.threads, len(numbers))
        if parts == 1:
            read(range(len(numbers)))
        else:
            list(_pool(self.threads).map(read, [range(first, len(numbers), parts) for first in range(parts)]))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for a process: batches that are read at the same time share its threads."""
    return ThreadPoolExecutor(threads, "read-pairs")


def _read_here(places: grain.MapDataset[Places], read: _Read, shape: tuple[int, ...]) -> Generator[Views, None, None]:
    """Reads batches in threads of this process, in order; they end when the generator is closed."""
    closed = threading.Event()

    def make(places: Places) -> Views:
        views = np.empty(shape, np.uint8)
        read(views, places, closed.is_set)
        return views

    # Two at a time: threads that are done with the one begin with the next.
    data = iter(places.map(make).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))
    try:
        yield from data
    finally:
        closed.set()
        data.close()


def _batches(data: Generator[Views, None, None], names: Sequence[str]) -> Generator[Batch, None, None]:
    try:
        for views in data:
            yield dict(zip(names, views, strict=True))
    finally:
        data.close()
