"""Weights for tests, made without running a model's initialisation, which takes seconds."""

from typing import Any

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


def random_params(kind: str, sizes: Sizes, scale: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """Normal numbers in the shapes that a model's parameters have; zeros at scale 0."""
    rng = np.random.default_rng(seed)
    shapes = nnx.to_pure_dict(nnx.state(abstract(kind, sizes)))
    return jax.tree.map(lambda leaf: rng.normal(scale=scale, size=leaf.shape).astype(np.float32), shapes)


def random_weights(kind: str, about: dict | None = None, seed: int = 0, **sizes) -> Weights:
    """Weights of a model of the sizes above; `sizes` changes them."""
    sizes = Sizes(**CROCO | sizes)
    return Weights(kind, sizes, random_params(kind, sizes, 0.05, seed), about or {})
