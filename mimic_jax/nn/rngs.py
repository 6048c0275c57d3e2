"""Random keys for fresh parameters."""

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray


class _Stream(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted in Python.

    Flax counts in an array. While a model is traced, each count searches all that has been traced so far for where it
    came from: time grows with the square of the depth.
    """

    def __init__(self, key: PRNGKeyArray | int):
        super().__init__(key, tag="params")
        self.drawn = 0

    def __call__(self) -> PRNGKeyArray:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


def make_rngs(key: PRNGKeyArray | int) -> nnx.Rngs:
    """What `nnx.Rngs(key)` gives to parameters, bit for bit, and in a fraction of the time where a model is traced."""
    rngs = nnx.Rngs(default=key)  # of stock layers that draw while they compute, such as nnx.Dropout
    rngs.params = _Stream(key)
    return rngs
