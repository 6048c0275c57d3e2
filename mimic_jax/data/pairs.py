"""Records → uint8 batches, on the host: read, decode, resize. All else happens on the accelerator (`augment`).

Which examples are in global step k depends on the seed, the examples and the global batch size alone. So a position
in the data is one number, the step, and a run resumes at it on any number of hosts.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int, UInt8

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, Mixture, all_examples, record_source

Batch = dict[str, UInt8[np.ndarray, "batch height width 3"]]


def read_views(pair: records.Pair, size: tuple[int, int]) -> dict[str, UInt8[np.ndarray, "{size[0]} {size[1]} 3"]]:
    """Both views of a pair, by name, as `read_view` gives them."""
    return {name: read_view(pair, name, size) for name in ("view1", "view2")}


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
    batch_size: int,
    seed: int,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
) -> Iterator[Batch]:
    """Endless shuffled batches, each epoch in its own order; this process's share of each.

    Without weights the datasets of the mixture are shuffled as one, and an epoch has every example once. With weights
    they take turns in the proportion of these (to within 1 %), each in epochs of its own.

    Args:
      examples: which pairs; at least one.
      size: views are resized to this height and width, in pixels.
      batch_size: pairs of the global batch, a multiple of `process_count`.
      seed: decides the order of examples, with `batch_size` and the examples.
      first_step: the global step that the first batch belongs to.
      process_index, process_count: of all hosts, which one this is.
      threads: how many examples are read at the same time.

    Raises:
      InputError: a process's share of a batch is not whole.
    """
    if batch_size % process_count:
        raise InputError(f"config.batch_size={batch_size} does not divide over {process_count} processes")
    share = batch_size // process_count
    data = (
        _in_order(examples, seed)
        .map(lambda record: read_views(records.decode(record), size))
        # Global step k is examples k·batch … (k+1)·batch − 1. Dealt out share by share, process i has the i-th share:
        # joined in the order of processes they are the batch as one process has it, row by row.
        .batch(share, drop_remainder=True)
        .slice(slice(first_step * process_count + process_index, None, process_count))
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(data.to_iter_dataset(options))


def read_pairs(examples: Examples | records.Dataset, indices: Sequence[int]) -> list[records.Pair]:
    """The pairs at the given places of the examples, or of a dataset."""
    if isinstance(examples, records.Dataset):
        examples = all_examples(Mixture((examples,)))
    starts = np.cumsum([0, *map(len, examples.mixture.datasets)])
    places = np.concatenate(
        [
            start + (np.arange(len(dataset)) if within is None else within)
            for start, dataset, within in zip(starts, examples.mixture.datasets, examples.indices, strict=False)
        ]
    )
    wanted = places[np.asarray(indices, int)].tolist()
    # Of no places array_record cannot read.
    found = record_source(examples.mixture.datasets).__getitems__(wanted) if wanted else []
    return [records.decode(record) for record in found]


def spread(examples: Examples, count: int) -> list[int]:
    """The places of `count` examples spread evenly, first and last among them; of all where there are no more."""
    return np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int).tolist()


def _in_order(examples: Examples, seed: int) -> grain.MapDataset:
    """The endless sequence of records."""
    mixture = examples.mixture
    # A dataset of which no record belongs has no turn.
    present = [place for place, length in enumerate(examples.lengths()) if length]
    sources = [
        grain.MapDataset.source(_Records(record_source([mixture.datasets[place]]), examples.indices[place]))
        for place in present
    ]
    if mixture.weights is None:
        return grain.MapDataset.concatenate(sources).shuffle(seed=seed).repeat()
    # A seed of its own for each: else datasets of one size would be in the same order.
    seeds = [int(np.random.SeedSequence([seed, place]).generate_state(1)[0]) for place in present]
    return grain.MapDataset.mix(
        [source.shuffle(seed=each).repeat() for source, each in zip(sources, seeds, strict=True)],
        [mixture.weights[place] for place in present],
    )


@dataclasses.dataclass(frozen=True)
class _Records:
    """The records of one dataset that belong, as grain reads a source."""

    source: grain.sources.ArrayRecordDataSource
    indices: Int[np.ndarray, "_"] | None

    def __len__(self) -> int:
        return len(self.source if self.indices is None else self.indices)

    def __getitem__(self, place: int) -> bytes:
        return self.source[place if self.indices is None else int(self.indices[place])]
