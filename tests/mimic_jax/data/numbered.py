"""Datasets whose pairs differ by their pixels, and which pairs are in which batch."""

import dataclasses
from pathlib import Path

import numpy as np

from mimic_jax import records
from mimic_jax.data import pairs
from mimic_jax.data.mixture import Examples
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.source import batches
from tests.datasets import make_pair, write_dataset

# Grey levels from one number to the next: JPEG moves a level by less than half of it.
LEVELS = 5


def write_numbered(folder: Path, first: int, count: int, shards: int = 3) -> list[list[records.Pair]]:
    """Pairs number `first` and on, three of them a scene, up to number 50; returns the pairs of each shard.

    View 1 is of the grey that stands for the number, and so is the negative of view 2.
    """
    made = []
    for number in range(first, first + count):
        grey = np.full((8, 8, 3), LEVELS * number, np.uint8)
        views = {"view1": records.encode_image(grey), "view2": records.encode_image(255 - grey)}
        made.append(dataclasses.replace(make_pair(number, scene=f"s{number // 3}"), **views))
    return write_dataset(folder, made, shards)


def numbers_in(batch: dict[str, np.ndarray]) -> list[int]:
    """The numbers of a batch's pairs, row by row."""
    one, two = (batch[name].astype(float).mean((1, 2, 3)) for name in ("view1", "view2"))
    numbers = np.rint(one / LEVELS)
    np.testing.assert_allclose(two, 255 - LEVELS * numbers, atol=1)
    return numbers.astype(int).tolist()


def numbers(examples: Examples) -> list[int]:
    """The number of every pair, index by index."""
    return [pair.frame1 for pair in pairs.read_pairs(examples, range(len(examples)))]


def found(examples: Examples, steps: int, index: int = 0, count: int = 1, **options) -> list[list[int]]:
    """The numbers of the pairs in each step: of rows index, index + count, …, as one of `count` hosts reads them."""
    source, of_index = pairs.pairs_source(examples, size=(8, 8)), np.array(numbers(examples))
    data = batches(source, batch_size=6, seed=0, rows=np.arange(index, 6, count), **options)
    rows = []
    for _ in range(steps):
        batch = next(data)
        assert batch["index"].dtype == np.int32
        rows.append(numbers_in(batch))
        assert of_index[batch["index"]].tolist() == rows[-1]
    data.close()
    return rows


def expected(examples: Examples, first_step: int, steps: int, index: int = 0, count: int = 1) -> list[list[int]]:
    """The same numbers, without reading a batch."""
    of_index = np.array(numbers(examples))
    options = {"lengths": examples.lengths(), "weights": examples.mixture.weights, "batch_size": 6, "seed": 0}
    rows = [
        of_index[examples_in_step(step, **options)][index::count].tolist()
        for step in range(first_step, first_step + steps)
    ]
    assert len(set(map(tuple, rows))) > steps // 2
    return rows
