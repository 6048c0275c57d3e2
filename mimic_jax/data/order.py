"""Which examples are in which step: a function of the seed, the lengths of the datasets and the global batch size only.

The step is the whole position in the data. A run therefore resumes at a step on any number of hosts, processes and
threads, and the examples of any step can be named without reading a record.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mimic_jax.data.shuffle import shuffle

# More steps than any run has.
FOREVER = 2**40
# What Grain scales the smallest weight to.
SMALLEST_SHARE = 100

Positions = Int[np.ndarray, " positions"]


def examples_at(
    positions: Positions, *, lengths: Sequence[int], weights: Sequence[float] | None, seed: int
) -> Positions:
    """The indices of the examples at some positions of the endless sequence of examples.

    Without weights the datasets are shuffled as one, and an epoch has every example once, each epoch in an order of its
    own. With weights the datasets take turns in the proportion of the weights (to within 1 %), each in epochs of its
    own.

    Equals Grain's `MapDataset.range`, `shuffle`, `repeat` and `mix`, position by position.

    Args:
      positions: from 0.
      lengths: number of examples of each dataset, one dataset after the other; one example at least.
      weights: of the datasets, above 0; None: every example is equally likely.
      seed: from 0; without weights below 2³².

    Returns:
      Indices in [0, sum(lengths)), for each position.

    Raises:
      ValueError: the seed is out of range.
    """
    if weights is None:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must be from 0 to below 2**32")
        return shuffle(positions, length=sum(lengths), seed=seed)
    # A dataset without examples has no turn.
    present = [number for number, length in enumerate(lengths) if length]
    turns, own = _take_turns(positions, [weights[number] for number in present])
    starts, indices = np.cumsum([0, *lengths]), np.empty_like(positions)
    for turn, number in enumerate(present):
        rows = turns == turn
        # A seed of its own for each dataset. Otherwise datasets of one length would be in the same order.
        seed_of_dataset = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        indices[rows] = starts[number] + shuffle(own[rows], length=lengths[number], seed=seed_of_dataset)
    return indices


def examples_in_step(
    step: int,
    *,
    lengths: Sequence[int],
    weights: Sequence[float] | None,
    batch_size: int,
    seed: int,
    rows: Int[np.ndarray, " rows"] | None = None,
) -> Int[np.ndarray, " _"]:
    """The indices of the examples of a global step, row by row of the batch. No record is read.

    Global step k has the examples at positions k·batch_size … (k + 1)·batch_size − 1.

    Args:
      step: from 0.
      lengths, weights, seed: as in `examples_at`.
      batch_size: examples of the global batch.
      rows: rows of the global batch, in [0, batch_size); all by default.
    """
    rows = np.arange(batch_size) if rows is None else rows
    return examples_at(step * batch_size + rows, lengths=lengths, weights=weights, seed=seed)


def _take_turns(positions: Positions, weights: Sequence[float]) -> tuple[Positions, Positions]:
    """Which dataset has its turn at each position, and how many turns that dataset had before.

    A dataset with share p of `remaining` leaves ⌊k·(remaining − p) / remaining⌋ of the first k positions to the
    datasets after it. It has its turn at k where it does not leave more of k + 1 positions than of k.
    """
    scale = SMALLEST_SHARE / min(weights)
    shares = [int(weight * scale) for weight in weights]
    remaining = sum(shares)
    # Python's integers where the products below do not fit 64 bits.
    before = positions.astype(object if remaining >= 2**31 else np.int64)
    after = before + 1
    turns, own = np.full(len(positions), -1), np.zeros_like(positions)
    for turn, share in enumerate(shares):
        left_before, left_after = (_scaled(count, remaining - share, remaining) for count in (before, after))
        rows = (turns < 0) & (before - left_before != after - left_after)
        turns[rows], own[rows] = turn, (after - left_after - 1)[rows]
        before, after, remaining = left_before, left_after, remaining - share
    return turns, own


def _scaled(counts: np.ndarray, numerator: int, denominator: int) -> np.ndarray:
    """⌊counts · numerator / denominator⌋; no product is above denominator²."""
    whole, rest = counts // denominator, counts % denominator
    return whole * numerator + rest * numerator // denominator
