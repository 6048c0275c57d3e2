"""What a completion is measured by."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def normalize_patches(
    patches: Float[Array, "batch patches patch_pixels"],
) -> Float[Array, "batch patches patch_pixels"]:
    """Each patch by its own mean and unbiased variance, ε 1e-6 inside the root (MAE, section 4.1)."""
    mean = patches.mean(-1, keepdims=True)
    variance = patches.var(-1, ddof=1, keepdims=True)
    return (patches - mean) / jnp.sqrt(variance + 1e-6)


def masked_mse(
    prediction: Float[Array, "batch patches patch_pixels"],
    target: Float[Array, "batch patches patch_pixels"],
    mask: Bool[Array, "batch patches"],
) -> Float[Array, " batch"]:
    """Mean squared error over the hidden patches of each image, in float32."""
    per_patch = jnp.square(prediction.astype(jnp.float32) - target).mean(-1)
    return (per_patch * mask).sum(-1) / mask.sum(-1)
