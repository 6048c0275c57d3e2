"""The linear head: each token becomes the pixels of its own patch."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.layers import linear
from mimic_jax.nn.patches import unpatchify


class LinearHead(nnx.Module):
    """One linear layer from a token to the patch_size × patch_size × channels values of its patch."""

    def __init__(self, width: int, channels: int, *, patch_size: int = 16, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        """Weights are Xavier-uniform, biases zero. `width`: of the tokens."""
        self.patch_size = patch_size
        self.project = linear(
            width, patch_size**2 * channels, axes_in=("embed",), axes_out=("pixels",), rngs=rngs, compute=compute
        )

    def __call__(self, tokens: Float[Array, "batch rows columns embed"]) -> Float[Array, "batch height width channels"]:
        """Predicts one value per channel and pixel, without a final activation.

        Args:
          tokens: a token map.

        Returns:
          float32; height = rows · patch_size, width = columns · patch_size.
        """
        batch, rows, columns, embed = tokens.shape
        patches = self.project(tokens.reshape(batch, rows * columns, embed))
        return unpatchify(patches.astype(jnp.float32), self.patch_size, rows, columns)
