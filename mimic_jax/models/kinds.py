"""The models, by the names that configs and weights have for them."""

import functools

from flax import nnx

from mimic_jax.models.croco import CroCo
from mimic_jax.models.mae import MAE
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import Encoder
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.rngs import make_rngs

# The first two complete masked views (see models.completion).
MODELS = {"croco": CroCo, "mae": MAE, "vit": Encoder}


def build(kind: str, sizes: Sizes, rngs: nnx.Rngs, compute: Compute = DEFAULT) -> nnx.Module:
    """A model with fresh parameters.

    Raises:
      KeyError: the kind is none of MODELS.
    """
    return MODELS[kind](sizes, rngs=rngs, compute=compute)


@functools.cache
def abstract(kind: str, sizes: Sizes) -> nnx.Module:
    """A model whose parameters have shapes and no values. Made once, as tracing takes seconds: not to be changed."""
    return nnx.eval_shape(lambda: build(kind, sizes, make_rngs(0)))
