"""CroCo: complete a masked view from a second view of the scene (arXiv 2210.10716; v2 2211.10408).

With a class token in encoder and decoder it is the model of MIMIC (arXiv 2306.15128).
"""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.models.completion import decoder_positions
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import ViT, rotation_of
from mimic_jax.nn.blocks import DecoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import scatter
from mimic_jax.nn.patches import grid_of

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]
Grid = tuple[int, int]


class CroCo(nnx.Module):
    """A shared encoder for both views, and a decoder that completes view 1 with cross-attention to view 2.

    View 1 is CroCo's target, view 2 its reference.
    """

    views = 2

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        self.sizes, self.compute = sizes, compute
        width = sizes.decoder_width
        self.encoder = ViT(sizes, rngs=rngs, compute=compute)
        self.decoder_embed = linear(
            sizes.encoder_width, width, axes_in=("embed",), axes_out=("decoder_embed",), rngs=rngs, compute=compute
        )
        if sizes.predicts:
            # Three dimensions, as published: weight decay applies to it.
            self.mask_token = nnx.Param(
                0.02 * jax.random.normal(rngs.params(), (1, 1, width)), axes=(None, None, "embed")
            )
        self.decoder = stack_blocks(
            lambda: DecoderBlock(width, sizes.decoder_heads, rngs=rngs, compute=compute),
            sizes.decoder_depth,
        )
        self.decoder_norm = layer_norm(width, rngs=rngs, compute=compute)
        if sizes.predicts:
            self.prediction_head = linear(
                width, 3 * sizes.patch_size**2, axes_in=("embed",), axes_out=("pixels",), rngs=rngs, compute=compute
            )

    def encode(self, images: Images, visible: Visible | None = None) -> Float[Array, "batch tokens embed"]:
        """Features of the visible patches of normalised images, or of all patches, after any class token."""
        return self.encoder(images, visible)

    def decode(
        self,
        features1: Float[Array, "batch tokens embed"],
        features2: Float[Array, "batch context embed"],
        grid: Grid,
        visible: Visible | None = None,
    ) -> Float[Array, "batch all_tokens decoder_embed"]:
        """The decoder's features of view 1 with cross-attention to view 2, after the final norm.

        Args:
          features1, features2: results of `encode` for two views of one size.
          grid: rows and columns of their patches.
          visible: indices of the patches in `features1`; the mask token stands for the others. None: all patches.
        """
        tokens, _ = scan_blocks(self.decoder, *self._inputs(features1, features2, grid, visible))
        return self.decoder_norm(tokens)

    def __call__(self, view1: Images, view2: Images, visible: Visible) -> Float[Array, "batch patches patch_pixels"]:
        """Predicted pixels of every patch of view 1, from its `visible` patches and view 2.

        Args:
          view1, view2: normalised images of one size, divisible by the patch size.
          visible: indices of the visible patches of view 1.
        """
        features1, features2 = self.encoder.encode_views((view1, visible), (view2, None))
        decoded = self.decode(features1, features2, grid_of(view1, self.sizes.patch_size), visible)
        return self.prediction_head(decoded[:, self.sizes.class_token :])

    def decoder_layers(self, view1: Images, view2: Images) -> Float[Array, "layers batch all_tokens decoder_embed"]:
        """Output of each decoder block for view 1 with all patches visible; the last one after the final norm."""
        last, layers = scan_blocks(self.decoder, *self._inputs_of(view1, view2))
        return layers.at[-1].set(self.decoder_norm(last))

    def attention(self, view1: Images, view2: Images) -> Float[Array, "layers batch patches context_patches"]:
        """Cross-attention weights from each patch of view 1 to each patch of view 2, by layer, averaged over heads.

        All patches of view 1 are visible. Attention to a class token is left out, so that rows may sum to less than 1.
        """
        tokens, *others = self._inputs_of(view1, view2)
        first = int(self.sizes.class_token)
        _, maps = scan_blocks(
            self.decoder,
            tokens,
            *others,
            collect=lambda block, tokens: block.attention_to_context(tokens, *others)[..., first:, first:].mean(1),
        )
        return maps

    def _inputs_of(self, view1, view2):
        features = self.encoder.encode_views((view1, None), (view2, None))
        return self._inputs(*features, grid_of(view1, self.sizes.patch_size), None)

    def _inputs(self, features1, features2, grid, visible):
        """Inputs of the first decoder block."""
        tokens, context = (self.compute.to_residual(self.decoder_embed(each)) for each in (features1, features2))
        if visible is not None:
            tokens = scatter(
                tokens, visible, self.mask_token[0, 0], grid[0] * grid[1], leading=int(self.sizes.class_token)
            )
        tokens, context = (decoder_positions(each, grid, self.sizes) for each in (tokens, context))
        rotation = rotation_of(grid, self.sizes, self.sizes.decoder_width // self.sizes.decoder_heads)
        return tokens, context, rotation, rotation
