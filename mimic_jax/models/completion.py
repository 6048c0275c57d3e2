"""What the models that complete masked views share.

Such a model has `sizes`, a number of `views`, and is called as `model(*views, visible)`: it predicts every patch of the
first view, of which it sees the `visible` ones, and all of the other views if it takes any. CroCo takes two, MAE one.
The training loop, the evaluation and the pictures know no more of a model than this.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.nn import masking
from mimic_jax.nn.patches import grid_of, patchify
from mimic_jax.nn.positions import sincos_2d

# Inside the root of a patch's deviation.
EPSILON = 1e-6

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]


def random_visible(key: PRNGKeyArray, images: Images, sizes: Sizes) -> Visible:
    """A mask drawn uniformly for each image: the indices of the patches that stay visible."""
    rows, columns = grid_of(images, sizes.patch_size)
    return masking.random_visible(key, len(images), rows * columns, sizes.visible(rows * columns))


def mask(images: Images, visible: Visible, sizes: Sizes) -> Bool[Array, "batch patches"]:
    """True where a patch of the images is hidden."""
    rows, columns = grid_of(images, sizes.patch_size)
    return masking.mask_of(visible, rows * columns)


def target(images: Images, sizes: Sizes) -> Float[Array, "batch patches patch_pixels"]:
    """What the prediction is compared with: the patches, normalised each by itself where the sizes say so."""
    patches = patchify(images, sizes.patch_size)
    return normalize_patches(patches) if sizes.norm_pix_loss else patches


def loss(model: nnx.Module, views: Sequence[Images], visible: Visible) -> Float[Array, " batch"]:
    """Mean squared error on the hidden patches of each first view (MAE, CroCo: the objective of all of them)."""
    first = views[0]
    return masked_mse(model(*views, visible), target(first, model.sizes), mask(first, visible, model.sizes))


def to_pixels(
    prediction: Float[Array, "batch patches patch_pixels"], images: Images, sizes: Sizes
) -> Float[Array, "batch patches patch_pixels"]:
    """A prediction as patches of a normalised image.

    One trained on normalised patches knows each up to its mean and spread: those two are taken from the true patch of
    `images` (as MAE's published pictures do).
    """
    if not sizes.norm_pix_loss:
        return prediction
    true = patchify(images, sizes.patch_size)
    return prediction * jnp.sqrt(true.var(-1, ddof=1, keepdims=True) + EPSILON) + true.mean(-1, keepdims=True)


def normalize_patches(
    patches: Float[Array, "batch patches patch_pixels"],
) -> Float[Array, "batch patches patch_pixels"]:
    """Each patch by its own mean and unbiased variance, ε 1e-6 inside the root (MAE, section 4.1)."""
    mean = patches.mean(-1, keepdims=True)
    variance = patches.var(-1, ddof=1, keepdims=True)
    return (patches - mean) / jnp.sqrt(variance + EPSILON)


def masked_mse(
    prediction: Float[Array, "batch patches patch_pixels"],
    target: Float[Array, "batch patches patch_pixels"],
    mask: Bool[Array, "batch patches"],
) -> Float[Array, " batch"]:
    """Mean squared error over the hidden patches of each image, in float32."""
    per_patch = jnp.square(prediction.astype(jnp.float32) - target).mean(-1)
    return (per_patch * mask).sum(-1) / mask.sum(-1)


def decoder_positions(
    tokens: Float[Array, "batch tokens embed"], grid: tuple[int, int], sizes: Sizes
) -> Float[Array, "batch tokens embed"]:
    """The decoder's tokens with the fixed rows of their patches added; none for a class token or a rotary model."""
    if ROPE_BASES[sizes.positions] is not None:
        return tokens
    rows = sincos_2d(tokens.shape[-1], *grid, trained_on=sizes.position_grid)
    return tokens.at[:, sizes.class_token :].add(rows.astype(tokens.dtype))
