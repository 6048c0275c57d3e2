"""The encoder that all models share: a vision transformer over the patches of an image (arXiv 2010.11929)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.nn.blocks import EncoderBlock, run, stack
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.layers import layer_norm, linear
from mimic_jax.nn.masking import gather
from mimic_jax.nn.patches import grid_of, patchify
from mimic_jax.nn.positions import grid_positions, resize_table, rotation_2d, sincos_2d

Images = Float[Array, "batch height width 3"]
Visible = Int[Array, "batch visible"]
Features = Float[Array, "batch tokens embed"]


def rotation_of(grid: tuple[int, int], sizes: Sizes, dim: int) -> Float[Array, "2 1 patches 1 2 {dim}//4"] | None:
    """How heads of `dim` channels turn at every patch, for rotary attention; None where positions are added instead."""
    base = ROPE_BASES[sizes.positions]
    return None if base is None else rotation_2d(grid_positions(*grid)[None], dim, base)


class ViT(nnx.Module):
    """Patches, positions, blocks, norm. A class token, where there is one, comes before the patches."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        self.sizes = sizes
        width, options = sizes.encoder_width, {"rngs": rngs, "compute": compute}
        self.patch_embed = linear(3 * sizes.patch_size**2, width, axes_in=("pixels",), axes_out=("embed",), **options)
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
        self.blocks = stack(lambda: EncoderBlock(width, sizes.encoder_heads, **options), sizes.encoder_depth)
        self.norm = layer_norm(width, **options)

    def __call__(self, images: Images, visible: Visible | None = None) -> Features:
        """Features of normalised images.

        Args:
          images: RGB, normalised, of any size that the patch size divides.
          visible: which patches are seen; all by default.

        Returns:
          One token a seen patch, row-major, after the class token where there is one.

        Raises:
          ValueError: the patch size does not divide the images.
        """
        (features,) = self.together((images, visible))
        return features

    def together(self, *views: tuple[Images, Visible | None]) -> list[Features]:
        """The features of several views, as each by itself, in one pass over the parameters.

        Their tokens lie one view after the other, so that each product is one, and so is the sum over devices of its
        gradient.
        """
        tokens, rotation, parts = self._embed(*views)
        tokens, _ = run(self.blocks, tokens, rotation, parts)
        return jnp.split(self.norm(tokens), np.cumsum(parts)[:-1], axis=1)

    def layers(self, images: Images) -> Float[Array, "layers batch tokens embed"]:
        """What each block makes of normalised images; the last block's after the final norm, as `__call__` gives it."""
        last, layers = run(self.blocks, *self._embed((images, None)))
        return layers.at[-1].set(self.norm(last))

    def _embed(self, *views):
        """The tokens that the first block gets, how each turns in rotary attention, and how many are of each view."""
        patch, width = self.sizes.patch_size, self.sizes.encoder_width
        seen, rotations = [], []
        for images, visible in views:
            patches = patchify(images, patch)
            seen.append(patches if visible is None else gather(patches, visible))
            rotation = rotation_of(grid_of(images, patch), self.sizes, width // self.sizes.encoder_heads)
            if rotation is not None:
                rotation = rotation if visible is None else rotation[:, 0, visible]
                rotations.append(jnp.broadcast_to(rotation, (2, len(images), *rotation.shape[2:])))
        # Hidden patches are left out before they are embedded.
        embedded = self.patch_embed(jnp.concatenate(seen, axis=1))
        parts = [each.shape[1] for each in seen]
        if ROPE_BASES[self.sizes.positions] is not None:
            return embedded, jnp.concatenate(rotations, axis=2), parts
        tokens = []
        for (images, visible), part in zip(views, jnp.split(embedded, np.cumsum(parts)[:-1], axis=1), strict=True):
            added = self._added(*grid_of(images, patch))
            added = jnp.broadcast_to(added, (len(part), *added.shape)) if visible is None else added[visible]
            tokens += [self._first(len(part), part.dtype)] if self.sizes.class_token else []
            # Spread out first, so that gradients of learned positions are summed in float32.
            tokens += [part + added.astype(part.dtype)]
        return jnp.concatenate(tokens, axis=1), None, [part + self.sizes.class_token for part in parts]

    def _first(self, batch, dtype):
        """The class token of each image."""
        first = self.class_token + (self.positions[:, :1] if self.sizes.positions == "learned" else 0)
        return jnp.broadcast_to(first, (batch, 1, first.shape[-1])).astype(dtype)

    def _added(self, rows, columns):
        """The rows that are added to the patches of a grid."""
        known = self.sizes.position_grid
        if self.sizes.positions == "learned":
            return resize_table(self.positions[0, self.sizes.class_token :], known, rows, columns)
        return jnp.asarray(sincos_2d(self.sizes.encoder_width, rows, columns, trained_on=known))


class Encoder(nnx.Module):
    """A ViT alone, as timm's weights are; it lies where CroCo and MAE have theirs."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        self.sizes = sizes
        self.encoder = ViT(sizes, rngs=rngs, compute=compute)

    def encode(self, images: Images) -> Float[Array, "batch tokens embed"]:
        """Features of normalised images, one a patch, after the class token where there is one."""
        return self.encoder(images)
