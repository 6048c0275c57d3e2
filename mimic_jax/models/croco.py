"""CroCo: complete a masked view from a second view of the scene (arXiv 2210.10716; v2 2211.10408)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mimic_jax.models.losses import masked_mse, normalize_patches
from mimic_jax.nn.blocks import DecoderBlock, EncoderBlock, run, stack
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import gather, mask_of, random_visible, scatter
from mimic_jax.nn.patches import patchify
from mimic_jax.nn.positions import grid_positions, sincos_2d

ROPE_BASES = {"cosine": None, "rope100": 100.0}

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]


@dataclasses.dataclass(frozen=True)
class CroCoSizes:
    """What a CroCo is made of. Image size is not part of it: the grid follows the images.

    positions: "cosine" (v1: sine-cosine rows added before encoder and decoder) or "rope100" (v2: rotary attention).
    mask_ratio: the share of view 1's patches that is hidden; int(mask_ratio · patches) of them.
    norm_pix_loss: whether target patches are normalised by their own mean and variance.
    """

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    patch_size: int = 16
    positions: str = "rope100"
    mask_ratio: float = 0.9
    norm_pix_loss: bool = True

    def __post_init__(self):
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            # A rotary head divides into (y, x) × (sine, cosine); sine-cosine rows divide likewise.
            if width % (4 * heads):
                raise ValueError(f"{part}_width {width} is not a multiple of 4 · {part}_heads ({heads})")
        if self.positions not in ROPE_BASES:
            raise ValueError(f"positions {self.positions!r} is none of {sorted(ROPE_BASES)}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio {self.mask_ratio} is not between 0 and 1")

    def visible(self, patches: int) -> int:
        """How many of `patches` stay visible (CroCo hides int(ratio · patches): 176 of 196)."""
        return patches - int(self.mask_ratio * patches)


class CroCo(nnx.Module):
    """A shared encoder for both views, and a decoder that completes view 1 while looking at view 2."""

    def __init__(self, sizes: CroCoSizes, *, rngs: nnx.Rngs, dtype: jnp.dtype | None = None):
        self.sizes = sizes
        pixels = sizes.patch_size**2 * 3
        common = {"rope_base": ROPE_BASES[sizes.positions], "rngs": rngs, "dtype": dtype}

        self.patch_embed = linear(
            pixels, sizes.encoder_width, axes_in=("pixels",), axes_out=("embed",), rngs=rngs, dtype=dtype
        )
        self.encoder = stack(
            lambda: EncoderBlock(sizes.encoder_width, sizes.encoder_heads, **common), sizes.encoder_depth
        )
        self.encoder_norm = layer_norm(sizes.encoder_width, rngs=rngs, dtype=dtype)

        self.decoder_embed = linear(
            sizes.encoder_width,
            sizes.decoder_width,
            axes_in=("embed",),
            axes_out=("decoder_embed",),
            rngs=rngs,
            dtype=dtype,
        )
        # Neither bias nor scale, so that weight decay applies to it: it has three dimensions as published.
        self.mask_token = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (1, 1, sizes.decoder_width)), axes=(None, None, "embed")
        )
        self.decoder = stack(
            lambda: DecoderBlock(sizes.decoder_width, sizes.decoder_heads, **common), sizes.decoder_depth
        )
        self.decoder_norm = layer_norm(sizes.decoder_width, rngs=rngs, dtype=dtype)
        self.prediction_head = linear(
            sizes.decoder_width, pixels, axes_in=("embed",), axes_out=("pixels",), rngs=rngs, dtype=dtype
        )

    def encode(self, images: Images, visible: Visible | None = None) -> Float[Array, "batch tokens embed"]:
        """Features of the visible patches of normalised images, or of all patches."""
        tokens = self.patch_embed(patchify(images, self.sizes.patch_size))
        rows, columns = self._grid(images)
        positions = jnp.asarray(grid_positions(rows, columns))[None]
        tokens = self._add_positions(tokens, rows, columns)
        if visible is not None:
            tokens = gather(tokens, visible)
            positions = positions[0][visible]
        tokens, _ = run(self.encoder, tokens, positions)
        return self.encoder_norm(tokens)

    def decode(
        self,
        features1: Float[Array, "batch visible embed"],
        features2: Float[Array, "batch patches embed"],
        visible: Visible,
        grid: tuple[int, int],
    ) -> Float[Array, "batch patches decoder_embed"]:
        """Fills the hidden places of view 1 with the mask token and looks at view 2 from each of them."""
        rows, columns = grid
        tokens, context = self.decoder_embed(features1), self.decoder_embed(features2)
        tokens = scatter(tokens, visible, self.mask_token[0, 0], rows * columns)
        tokens = self._add_positions(tokens, rows, columns)
        context = self._add_positions(context, rows, columns)
        positions = jnp.asarray(grid_positions(rows, columns))[None]
        tokens, _ = run(self.decoder, tokens, context, positions, positions)
        return self.decoder_norm(tokens)

    def __call__(self, view1: Images, view2: Images, visible: Visible) -> Float[Array, "batch patches patch_pixels"]:
        """Predicted pixels of every patch of view 1, of which only the `visible` patches were seen.

        Args:
          view1, view2: normalised images of one size, divisible by the patch size.
          visible: indices of the patches of view 1 that are seen.
        """
        features1 = self.encode(view1, visible)
        features2 = self.encode(view2)
        return self.prediction_head(self.decode(features1, features2, visible, self._grid(view1)))

    def random_visible(self, key: PRNGKeyArray, images: Images) -> Visible:
        """A mask drawn uniformly for each image: the indices of the patches that stay visible."""
        rows, columns = self._grid(images)
        return random_visible(key, len(images), rows * columns, self.sizes.visible(rows * columns))

    def target(self, images: Images) -> Float[Array, "batch patches patch_pixels"]:
        """What the prediction is compared with: the patches, normalised each by itself where the sizes say so."""
        patches = patchify(images, self.sizes.patch_size)
        return normalize_patches(patches) if self.sizes.norm_pix_loss else patches

    def loss(self, view1: Images, view2: Images, visible: Visible) -> Float[Array, " batch"]:
        """Mean squared error on the hidden patches of each view 1."""
        return masked_mse(self(view1, view2, visible), self.target(view1), self.mask(view1, visible))

    def mask(self, images: Images, visible: Visible) -> Bool[Array, "batch patches"]:
        """True where a patch of the images is hidden."""
        rows, columns = self._grid(images)
        return mask_of(visible, rows * columns)

    def _grid(self, images: Images) -> tuple[int, int]:
        return images.shape[1] // self.sizes.patch_size, images.shape[2] // self.sizes.patch_size

    def _add_positions(self, tokens: Array, rows: int, columns: int) -> Array:
        if self.sizes.positions != "cosine":
            return tokens
        return tokens + sincos_2d(tokens.shape[-1], rows, columns).astype(tokens.dtype)
