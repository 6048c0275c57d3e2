"""Which examples are in which step: a function of the seed, the examples and the global batch size alone.

A position in the data is one number, the step. So a run resumes at it on any number of hosts, processes and threads,
and the examples of any step can be named without reading a record. An example goes by its place, as `Examples` counts.
"""

import dataclasses

import grain
import numpy as np
from jaxtyping import Int

from mimic_jax.data.mixture import Examples

# More steps than any run has.
FOREVER = 2**40


def in_order(examples: Examples, seed: int) -> grain.MapDataset[int]:
    """The endless sequence of places, of which any element is found in constant time.

    Without weights the datasets of the mixture are shuffled as one, and an epoch has every example once, each epoch in
    an order of its own. With weights they take turns in the proportion of these (to within 1 %), each in epochs of its
    own.

    Args:
      examples: at least one.
    """
    weights = examples.mixture.weights
    if weights is None:
        return grain.MapDataset.range(len(examples)).shuffle(seed=seed).repeat()
    # A dataset of which no record belongs has no turn.
    lengths = examples.lengths()
    present = [number for number, length in enumerate(lengths) if length]
    starts = np.cumsum([0, *lengths]).tolist()
    sources = [grain.MapDataset.range(starts[number], starts[number + 1]) for number in present]
    # A seed of its own for each: else datasets of one size would be in the same order.
    seeds = [int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in present]
    return grain.MapDataset.mix(
        [source.shuffle(seed=each).repeat() for source, each in zip(sources, seeds, strict=True)],
        [weights[number] for number in present],
    )


def rows_of_steps(
    examples: Examples, *, batch_size: int, seed: int, first_step: int, rows: Int[np.ndarray, " rows"]
) -> grain.MapDataset[Int[np.ndarray, " rows"]]:
    """The places of some rows of every global batch, from step `first_step` (0-based) on.

    Global step k is elements k·batch … (k+1)·batch − 1 of `in_order`, row by row.
    """
    return grain.MapDataset.range(first_step, FOREVER).map(_Rows(in_order(examples, seed), batch_size, rows))


def examples_in_step(examples: Examples, *, batch_size: int, seed: int, step: int) -> Int[np.ndarray, "{batch_size}"]:
    """The places of the examples of global step `step` (0-based), row by row of the batch. No record is read."""
    return _Rows(in_order(examples, seed), batch_size, np.arange(batch_size))(step)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """The places of a step's rows; pickled, it goes to the processes that read."""

    ordered: grain.MapDataset[int]
    batch_size: int
    rows: Int[np.ndarray, " rows"]

    def __call__(self, step: int) -> Int[np.ndarray, " rows"]:
        return np.array([self.ordered[step * self.batch_size + row] for row in self.rows.tolist()])
