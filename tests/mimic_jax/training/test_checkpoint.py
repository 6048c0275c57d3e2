"""The checksum of a checkpoint, against every single change that matters."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.training.checkpoint import checksum

TREE = {
    "kernel": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "bias": np.random.default_rng(1).normal(size=(7,)).astype(np.float32),
    "step": np.array(12, np.int32),
}


def found(tree):
    return int(checksum({name: jnp.asarray(value) for name, value in tree.items()}))


def test_it_is_the_weighted_sum_of_all_bits():
    expected = 0
    for number, name in enumerate(sorted(TREE)):
        bits = np.ravel(TREE[name]).view(np.uint32).astype(object)
        expected += (2 * number + 1) * sum(bit * (2 * place + 1) for place, bit in enumerate(bits))
    assert found(TREE) == expected % 2**32


@given(st.sampled_from(sorted(TREE)), st.integers(0, 59), st.integers(0, 31))
def test_every_flip_of_a_bit_changes_it(name, place, bit):
    changed = TREE[name].copy().reshape(-1)
    changed.view(np.uint32)[place % changed.size] ^= np.uint32(1 << bit)
    assert found(TREE | {name: changed.reshape(TREE[name].shape)}) != found(TREE)


@given(st.permutations(range(7)).filter(lambda order: list(order) != sorted(order)))
def test_numbers_that_change_places_change_it(order):
    assert found(TREE | {"bias": TREE["bias"][list(order)]}) != found(TREE)
