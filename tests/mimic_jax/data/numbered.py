"""Datasets whose pairs are told apart by their pixels, for tests of which pairs come when."""

import dataclasses
from pathlib import Path

import numpy as np

from mimic_jax import records
from tests.datasets import make_pair, write_dataset

# Grey levels from one number to the next: JPEG moves a level by less than half of it.
LEVELS = 5


def write_numbered(folder: Path, first: int, count: int, shards: int = 3) -> list[list[records.Pair]]:
    """Pairs number `first` and on, three of them a scene, up to number 50; returns the pairs of each shard.

    View 1 is of the grey that stands for the number, and so is the negative of view 2.
    """
    pairs = []
    for number in range(first, first + count):
        grey = np.full((8, 8, 3), LEVELS * number, np.uint8)
        views = {"view1": records.encode_image(grey), "view2": records.encode_image(255 - grey)}
        pairs.append(dataclasses.replace(make_pair(number, scene=f"s{number // 3}"), **views))
    return write_dataset(folder, pairs, shards)


def numbers_in(batch: dict[str, np.ndarray]) -> list[int]:
    """The numbers of a batch's pairs, row by row."""
    one, two = (batch[name].astype(float).mean((1, 2, 3)) for name in ("view1", "view2"))
    numbers = np.rint(one / LEVELS)
    np.testing.assert_allclose(two, 255 - LEVELS * numbers, atol=1)
    return numbers.astype(int).tolist()
