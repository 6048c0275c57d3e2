"""Weights for tests, made without running a model's initialisation, which takes seconds."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes


def random_params(kind: str, sizes: Sizes, scale: float = 0.2) -> dict[str, Any]:
    """Normal numbers in the shapes that a model's parameters have; zeros at scale 0."""
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(abstract(kind, sizes)))
    return jax.tree.map(lambda leaf: rng.normal(scale=scale, size=leaf.shape).astype(np.float32), shapes)
