"""CroCo: complete a masked view from a second view of the scene (arXiv 2210.10716; v2 2211.10408).

With a class token in encoder and decoder it is MIMIC's (arXiv 2306.15128).
"""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.models.completion import decoder_positions
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import ViT, rotation_of
from mimic_jax.nn.blocks import DecoderBlock, run, stack
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import scatter
from mimic_jax.nn.patches import grid_of

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]
Grid = tuple[int, int]


class CroCo(nnx.Module):
    """A shared encoder for both views, and a decoder that completes view 1 while looking at view 2."""

    views = 2

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        self.sizes = sizes
        width = sizes.decoder_width
        self.encoder = ViT(sizes, rngs=rngs, compute=compute)
        self.decoder_embed = linear(
            sizes.encoder_width, width, axes_in=("embed",), axes_out=("decoder_embed",), rngs=rngs, compute=compute
        )
        if sizes.predicts:
            # Neither bias nor scale, so that weight decay applies to it: it has three dimensions as published.
            self.mask_token = nnx.Param(
                0.02 * jax.random.normal(rngs.params(), (1, 1, width)), axes=(None, None, "embed")
            )
        self.decoder = stack(
            lambda: DecoderBlock(width, sizes.decoder_heads, rngs=rngs, compute=compute),
            sizes.decoder_depth,
        )
        self.decoder_norm = layer_norm(width, rngs=rngs, compute=compute)
        if sizes.predicts:
            self.prediction_head = linear(
                width, 3 * sizes.patch_size**2, axes_in=("embed",), axes_out=("pixels",), rngs=rngs, compute=compute
            )

    def encode(self, images: Images, visible: Visible | None = None) -> Float[Array, "batch tokens embed"]:
        """Features of the visible patches of normalised images, or of all; after a class token where there is one."""
        return self.encoder(images, visible)

    def decode(
        self,
        features1: Float[Array, "batch tokens embed"],
        features2: Float[Array, "batch context embed"],
        grid: Grid,
        visible: Visible | None = None,
    ) -> Float[Array, "batch all_tokens decoder_embed"]:
        """View 1 as the decoder sees it while looking at view 2.

        Args:
          features1, features2: what `encode` made of views of one size.
          grid: rows and columns of their patches.
          visible: the patches that `features1` has; the hidden places are filled with the mask token. None: it has all.
        """
        tokens, _ = run(self.decoder, *self._inputs(features1, features2, grid, visible))
        return self.decoder_norm(tokens)

    def __call__(self, view1: Images, view2: Images, visible: Visible) -> Float[Array, "batch patches patch_pixels"]:
        """Predicted pixels of every patch of view 1, of which only the `visible` patches were seen.

        Args:
          view1, view2: normalised images of one size, divisible by the patch size.
          visible: indices of the patches of view 1 that are seen.
        """
        features1, features2 = self.encoder.together((view1, visible), (view2, None))
        decoded = self.decode(features1, features2, grid_of(view1, self.sizes.patch_size), visible)
        return self.prediction_head(decoded[:, self.sizes.class_token :])

    def decoder_layers(self, view1: Images, view2: Images) -> Float[Array, "layers batch all_tokens decoder_embed"]:
        """What each decoder block makes of view 1, nothing hidden; the last block's after the final norm."""
        last, layers = run(self.decoder, *self._inputs_of(view1, view2))
        return layers.at[-1].set(self.decoder_norm(last))

    def attention(self, view1: Images, view2: Images) -> Float[Array, "layers batch patches context_patches"]:
        """Where in view 2 each patch of view 1 looks, by decoder layer: cross-attention averaged over heads.

        Nothing of view 1 is hidden. Attention to a class token is left out, so that rows may sum to less than 1.
        """
        tokens, *others = self._inputs_of(view1, view2)
        first = int(self.sizes.class_token)
        _, maps = run(
            self.decoder,
            tokens,
            *others,
            read=lambda block, tokens: block.attention_to_context(tokens, *others)[..., first:, first:].mean(1),
        )
        return maps

    def _inputs_of(self, view1, view2):
        features = self.encoder.together((view1, None), (view2, None))
        return self._inputs(*features, grid_of(view1, self.sizes.patch_size), None)

    def _inputs(self, features1, features2, grid, visible):
        """What the first decoder block gets."""
        tokens, context = self.decoder_embed(features1), self.decoder_embed(features2)
        if visible is not None:
            tokens = scatter(
                tokens, visible, self.mask_token[0, 0], grid[0] * grid[1], leading=int(self.sizes.class_token)
            )
        tokens, context = (decoder_positions(each, grid, self.sizes) for each in (tokens, context))
        rotation = rotation_of(grid, self.sizes, self.sizes.decoder_width // self.sizes.decoder_heads)
        return tokens, context, rotation, rotation
