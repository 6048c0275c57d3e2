"""The encoder of all models: a vision transformer over the patches of an image (arXiv 2010.11929)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.nn.blocks import EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.dropout import Keys
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import gather
from mimic_jax.nn.patches import grid_of, patchify
from mimic_jax.nn.positions import grid_positions, resize_table, rotation_2d, sincos_2d

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]
Features = Float[Array, "batch tokens embed"]


def rotation_of(grid: tuple[int, int], sizes: Sizes, dim: int) -> Float[Array, "2 1 patches 1 2 {dim}//4"] | None:
    """Angles of rotary position embeddings for heads of `dim` channels; None for absolute position embeddings."""
    base = ROPE_BASES[sizes.positions]
    return None if base is None else rotation_2d(grid_positions(*grid)[None], dim, base)


class ViT(nnx.Module):
    """Patch embedding, position embeddings, blocks, norm. A class token, if any, comes before the patches.

    Args:
      drop_path: drop-path rate of the last block, in [0, 1); rates rise linearly from 0 at the first block. It applies
        where a method gets `keys`.

    Raises:
      ValueError: the drop-path rate is outside [0, 1).
    """

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT, drop_path: float = 0.0):
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path {drop_path} is not in [0, 1)")
        self.sizes, self.compute, self.drop_path = sizes, compute, drop_path
        width, options = sizes.encoder_width, {"rngs": rngs, "compute": compute}
        self.patch_embed = linear(3 * sizes.patch_size**2, width, axes_in=("pixels",), axes_out=("embed",), **options)
        # Three dimensions, as published: weight decay applies to it.
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
        self.blocks = stack_blocks(lambda: EncoderBlock(width, sizes.encoder_heads, **options), sizes.encoder_depth)
        self.norm = layer_norm(width, **options)

    def __call__(self, images: Images, visible: Visible | None = None, keys: Keys | None = None) -> Features:
        """Features of normalised images.

        Args:
          images: RGB, normalised, of any size that the patch size divides.
          visible: indices of the visible patches; all by default.
          keys: one random key per image, for drop path; None: nothing is dropped.

        Returns:
          One token per visible patch, row-major, after any class token.

        Raises:
          ValueError: the patch size does not divide the images.
        """
        (features,) = self.encode_views((images, visible), keys=keys)
        return features

    def encode_views(self, *views: tuple[Images, Visible | None], keys: Keys | None = None) -> list[Features]:
        """The features of several views, each encoded independently, in one pass over the parameters.

        The tokens of the views are concatenated, so that each parameter has one matrix product, and its gradient one
        sum over devices.

        Args:
          views: normalised images and the indices of their visible patches; None: all patches.
          keys: one random key per row, for drop path, which is drawn for each view; None: nothing is dropped.
        """
        tokens, rotation, lengths = self._embed(*views)
        tokens, _ = self._scan(tokens, rotation, lengths, keys)
        return jnp.split(self.norm(tokens), np.cumsum(lengths)[:-1], axis=1)

    def layers(self, images: Images, keys: Keys | None = None) -> Float[Array, "layers batch tokens embed"]:
        """Output of each block for normalised images; the last one after the final norm, as `__call__` returns it."""
        outputs = self.block_outputs(images, keys)
        return outputs.at[-1].set(self.norm(outputs[-1]))

    def block_outputs(self, images: Images, keys: Keys | None = None) -> Float[Array, "layers batch tokens embed"]:
        """Output of each block for normalised images, without the final norm."""
        _, outputs = self._scan(*self._embed((images, None)), keys)
        return outputs

    def _scan(self, tokens, rotation, segment_lengths, keys):
        return scan_blocks(self.blocks, tokens, rotation, segment_lengths, drop_path=self.drop_path, keys=keys)

    def _embed(self, *views):
        """The tokens of the first block, the rotation of each token, and the number of tokens of each view."""
        patch, width = self.sizes.patch_size, self.sizes.encoder_width
        pixels, rotations = [], []
        for images, visible in views:
            patches = patchify(images, patch)
            pixels.append(patches if visible is None else gather(patches, visible))
            rotation = rotation_of(grid_of(images, patch), self.sizes, width // self.sizes.encoder_heads)
            if rotation is not None:
                rotation = rotation if visible is None else rotation[:, 0, visible]
                rotations.append(jnp.broadcast_to(rotation, (2, len(images), *rotation.shape[2:])))
        # Hidden patches are left out before the patch embedding.
        embedded = self.compute.to_residual(self.patch_embed(jnp.concatenate(pixels, axis=1)))
        lengths = [each.shape[1] for each in pixels]
        if ROPE_BASES[self.sizes.positions] is not None:
            return embedded, jnp.concatenate(rotations, axis=2), lengths
        tokens = []
        segments = jnp.split(embedded, np.cumsum(lengths)[:-1], axis=1)
        for (images, visible), segment in zip(views, segments, strict=True):
            table = self._position_embeddings(*grid_of(images, patch))
            table = jnp.broadcast_to(table, (len(segment), *table.shape)) if visible is None else table[visible]
            tokens += [self._class_tokens(len(segment), segment.dtype)] if self.sizes.class_token else []
            # Broadcast before the cast, so that gradients of learned embeddings are summed in float32.
            tokens += [segment + table.astype(segment.dtype)]
        return jnp.concatenate(tokens, axis=1), None, [length + self.sizes.class_token for length in lengths]

    def _class_tokens(self, batch, dtype):
        """The class token of each image."""
        first = self.class_token + (self.positions[:, :1] if self.sizes.positions == "learned" else 0)
        return jnp.broadcast_to(first, (batch, 1, first.shape[-1])).astype(dtype)

    def _position_embeddings(self, rows, columns):
        """Absolute position embeddings of the patches of a grid."""
        known = self.sizes.position_grid
        if self.sizes.positions == "learned":
            return resize_table(self.positions[0, self.sizes.class_token :], known, rows, columns)
        return jnp.asarray(sincos_2d(self.sizes.encoder_width, rows, columns, trained_on=known))


class Encoder(nnx.Module):
    """Only a ViT, for weights such as timm's; its attribute `encoder` is that of CroCo and MAE."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        self.sizes = sizes
        self.encoder = ViT(sizes, rngs=rngs, compute=compute)

    def encode(self, images: Images) -> Float[Array, "batch tokens embed"]:
        """Features of normalised images, one per patch, after any class token."""
        return self.encoder(images)
