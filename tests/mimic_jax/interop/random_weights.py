"""Weights of random numbers, for tests of files."""

import functools

import jax
import numpy as np
from flax import nnx

from mimic_jax.interop.weights import Weights
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes

CROCO = {
    "encoder_width": 128,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "decoder_width": 64,
    "decoder_depth": 1,
    "decoder_heads": 1,
    "patch_size": 8,
}


def random_weights(kind: str, about: dict | None = None, seed: int = 0, **sizes) -> Weights:
    """Weights of a model of small sizes; `sizes` changes them."""
    sizes = Sizes(**CROCO | sizes)
    draw = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: 0.05 * draw.standard_normal(leaf.shape, np.float32),
        _shapes(kind, sizes),
    )
    return Weights(kind, sizes, params, about or {})


@functools.cache
def _shapes(kind: str, sizes: Sizes) -> dict:
    return nnx.to_pure_dict(nnx.state(abstract(kind, sizes), nnx.Param))
