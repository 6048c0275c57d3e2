"""Which examples are in which step: a function of the seed, the examples and the global batch size alone.

A position in the data is one number, the step. So a run resumes at it on any number of hosts, processes and threads,
and the examples of any step can be named without reading a record. An example goes by its place, as `Examples` counts.
"""

import grain
import numpy as np
from jaxtyping import Int

from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples


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


def shares(
    examples: Examples, *, batch_size: int, seed: int, first_step: int, share_index: int, share_count: int
) -> grain.MapDataset[Int[np.ndarray, " share"]]:
    """The places of one share of every global batch, from step `first_step` (0-based) on.

    Global step k is elements k·batch … (k+1)·batch − 1 of `in_order`: its shares, joined one after the other, are that,
    row by row.

    Raises:
      InputError: a share is not whole.
    """
    if batch_size % share_count:
        raise InputError(f"config.batch_size={batch_size} does not divide over {share_count} processes")
    dealt = in_order(examples, seed).batch(batch_size // share_count, drop_remainder=True)
    return dealt.slice(slice(first_step * share_count + share_index, None, share_count))


def examples_in_step(examples: Examples, *, batch_size: int, seed: int, step: int) -> Int[np.ndarray, "{batch_size}"]:
    """The places of the examples of global step `step` (0-based), row by row of the batch. No record is read."""
    return in_order(examples, seed).batch(batch_size, drop_remainder=True)[step]
