"""Records → uint8 batches, on the host: read, decode, resize. All else happens on the accelerator (`augment`).

Which examples are in global step k depends on the seed, the dataset and the global batch size alone. So a position
in the data is one number, the step, and a run resumes at it on any number of hosts.
"""

from collections.abc import Iterator

import cv2
import grain
import numpy as np
from jaxtyping import UInt8

from mimic_jax import records
from mimic_jax.command import InputError

Batch = dict[str, UInt8[np.ndarray, "batch height width 3"]]


def read_views(pair: records.Pair, size: int) -> dict[str, UInt8[np.ndarray, "{size} {size} 3"]]:
    """Both views of a pair, by name, as `read_view` gives them."""
    return {name: read_view(pair, name, size) for name in ("view1", "view2")}


def read_view(pair: records.Pair, name: str, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """One view of a pair, `name` being view1 or view2, resized to size × size pixels where it is not that already.

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
    return view if view.shape[:2] == (size, size) else cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)


def batches(
    dataset: records.Dataset,
    *,
    size: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
) -> Iterator[Batch]:
    """Endless shuffled batches, each epoch in its own order; this process's share of each.

    Args:
      dataset: where the pairs are.
      size: views are resized to size × size pixels.
      batch_size: the global batch, a multiple of `process_count`.
      seed: decides the order of examples, with `batch_size` and the dataset.
      first_step: the global step that the first batch belongs to.
      process_index, process_count: of all hosts, which one this is.
      threads: how many examples are read at the same time.

    Raises:
      InputError: a process's share of a batch is not whole.
    """
    if batch_size % process_count:
        raise InputError(f"config.batch_size={batch_size} does not divide over {process_count} processes")
    share = batch_size // process_count
    examples = (
        grain.MapDataset.source(_source(dataset))
        .shuffle(seed=seed)
        .repeat()
        .map(lambda record: read_views(records.decode(record), size))
        # Global step k is examples k·batch … (k+1)·batch − 1. Dealt out share by share, process i has the i-th share:
        # joined in the order of processes they are the batch as one process has it, row by row.
        .batch(share, drop_remainder=True)
        .slice(slice(first_step * process_count + process_index, None, process_count))
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(examples.to_iter_dataset(options))


def read_pairs(dataset: records.Dataset, indices: list[int]) -> list[records.Pair]:
    """The pairs at the given places of the dataset."""
    return [records.decode(record) for record in _source(dataset).__getitems__(indices)]


def _source(dataset: records.Dataset) -> grain.sources.ArrayRecordDataSource:
    return grain.sources.ArrayRecordDataSource([str(shard) for shard in dataset.shards])
