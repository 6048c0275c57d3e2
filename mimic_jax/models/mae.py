"""MAE: complete a masked image from its visible patches (arXiv 2111.06377)."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.models.completion import decoder_positions
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import ViT, rotation_of
from mimic_jax.nn.blocks import EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import scatter
from mimic_jax.nn.patches import grid_of

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]


class MAE(nnx.Module):
    """An encoder of the visible patches, and a decoder with self-attention over all patches."""

    views = 1

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        self.sizes, self.compute = sizes, compute
        width = sizes.decoder_width
        self.encoder = ViT(sizes, rngs=rngs, compute=compute)
        self.decoder_embed = linear(
            sizes.encoder_width, width, axes_in=("embed",), axes_out=("decoder_embed",), rngs=rngs, compute=compute
        )
        # Three dimensions, as published: weight decay applies to it.
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, width)), axes=(None, None, "embed"))
        self.decoder = stack_blocks(
            lambda: EncoderBlock(width, sizes.decoder_heads, rngs=rngs, compute=compute),
            sizes.decoder_depth,
        )
        self.decoder_norm = layer_norm(width, rngs=rngs, compute=compute)
        self.prediction_head = linear(
            width, 3 * sizes.patch_size**2, axes_in=("embed",), axes_out=("pixels",), rngs=rngs, compute=compute
        )

    def encode(self, images: Images, visible: Visible | None = None) -> Float[Array, "batch tokens embed"]:
        """Features of the visible patches of normalised images, or of all patches, after any class token."""
        return self.encoder(images, visible)

    def __call__(self, images: Images, visible: Visible) -> Float[Array, "batch patches patch_pixels"]:
        """Predicted pixels of every patch of normalised images, from the `visible` patches."""
        sizes = self.sizes
        rows, columns = grid = grid_of(images, sizes.patch_size)
        tokens = self.compute.to_residual(self.decoder_embed(self.encode(images, visible)))
        tokens = scatter(tokens, visible, self.mask_token[0, 0], rows * columns, leading=int(sizes.class_token))
        tokens = decoder_positions(tokens, grid, sizes)
        rotation = rotation_of(grid, sizes, sizes.decoder_width // sizes.decoder_heads)
        tokens, _ = scan_blocks(self.decoder, tokens, rotation)
        return self.prediction_head(self.decoder_norm(tokens)[:, sizes.class_token :])
