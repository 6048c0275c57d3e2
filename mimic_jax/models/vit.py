"""The encoder that all models share: a vision transformer over the patches of an image (arXiv 2010.11929)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.nn.blocks import EncoderBlock, run, stack
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import gather
from mimic_jax.nn.patches import grid_of, patchify
from mimic_jax.nn.positions import grid_positions, resize_table, sincos_2d

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]


def rotary_positions(grid: tuple[int, int], sizes: Sizes) -> Int[Array, "1 patches 2"] | None:
    """The (y, x) of every patch, for rotary attention; None where positions are added instead."""
    return None if ROPE_BASES[sizes.positions] is None else jnp.asarray(grid_positions(*grid))[None]


class ViT(nnx.Module):
    """Patches, positions, blocks, norm. A class token, where there is one, comes before the patches."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, dtype: jnp.dtype | None = None):
        self.sizes = sizes
        width = sizes.encoder_width
        self.patch_embed = linear(
            3 * sizes.patch_size**2, width, axes_in=("pixels",), axes_out=("embed",), rngs=rngs, dtype=dtype
        )
        # Neither bias nor scale, so that weight decay applies to it: it has three dimensions as published.
        if sizes.class_token:
            self.class_token = nnx.Param(
                0.02 * jax.random.normal(rngs.params(), (1, 1, width)), axes=(None, None, "embed")
            )
        if sizes.positions == "learned":
            rows, columns = sizes.position_grid
            shape = (1, sizes.class_token + rows * columns, width)
            self.positions = nnx.Param(
                0.02 * jax.random.normal(rngs.params(), shape), axes=(None, "positions", "embed")
            )
        self.blocks = stack(
            lambda: EncoderBlock(
                width, sizes.encoder_heads, rope_base=ROPE_BASES[sizes.positions], rngs=rngs, dtype=dtype
            ),
            sizes.encoder_depth,
        )
        self.norm = layer_norm(width, rngs=rngs, dtype=dtype)

    def __call__(self, images: Images, visible: Visible | None = None) -> Float[Array, "batch tokens embed"]:
        """Features of normalised images.

        Args:
          images: RGB, normalised, of any size that the patch size divides.
          visible: which patches are seen; all by default.

        Returns:
          One token a seen patch, row-major, after the class token where there is one.

        Raises:
          ValueError: the patch size does not divide the images.
        """
        tokens, _ = run(self.blocks, *self._embed(images, visible))
        return self.norm(tokens)

    def layers(self, images: Images) -> Float[Array, "layers batch tokens embed"]:
        """What each block makes of normalised images; the last block's after the final norm, as `__call__` gives it."""
        last, layers = run(self.blocks, *self._embed(images))
        return layers.at[-1].set(self.norm(last))

    def _embed(self, images, visible=None):
        """The tokens that the first block gets, and the (y, x) of each, for rotary attention."""
        rows, columns = grid_of(images, self.sizes.patch_size)
        tokens = self.patch_embed(patchify(images, self.sizes.patch_size))
        positions = rotary_positions((rows, columns), self.sizes)
        if positions is None:
            tokens = tokens + self._added(rows, columns).astype(tokens.dtype)
        if visible is not None:
            tokens = gather(tokens, visible)
            positions = None if positions is None else positions[0][visible]
        if self.sizes.class_token:
            first = self.class_token + (self.positions[:, :1] if self.sizes.positions == "learned" else 0)
            first = jnp.broadcast_to(first, (len(tokens), 1, tokens.shape[-1])).astype(tokens.dtype)
            tokens = jnp.concatenate([first, tokens], 1)
        return tokens, positions

    def _added(self, rows, columns):
        known = self.sizes.position_grid
        if self.sizes.positions == "learned":
            return resize_table(self.positions[0, self.sizes.class_token :], known, rows, columns)
        return jnp.asarray(sincos_2d(self.sizes.encoder_width, rows, columns, trained_on=known))


class Encoder(nnx.Module):
    """A ViT alone, as timm's weights are; it lies where CroCo and MAE have theirs."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, dtype: jnp.dtype | None = None):
        self.sizes = sizes
        self.encoder = ViT(sizes, rngs=rngs, dtype=dtype)

    def encode(self, images: Images) -> Float[Array, "batch tokens embed"]:
        """Features of normalised images, one a patch, after the class token where there is one."""
        return self.encoder(images)
