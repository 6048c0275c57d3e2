"""Random masks with a static count, so that shapes are static under jit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def random_visible(key: PRNGKeyArray, batch: int, patches: int, visible: int) -> Int[Array, "batch visible"]:
    """Chooses `visible` of `patches` patches uniformly without replacement, per image; indices ascend."""
    noise = jax.random.uniform(key, (batch, patches))
    return jnp.sort(jnp.argsort(noise, axis=-1)[:, :visible], axis=-1)


def mask_of(visible: Int[Array, "batch visible"], patches: int) -> Bool[Array, "batch {patches}"]:
    """True where a patch is hidden."""
    hidden = jnp.ones((visible.shape[0], patches), bool)
    return jax.vmap(lambda mask, index: mask.at[index].set(False))(hidden, visible)


def gather(
    tokens: Float[Array, "batch patches width"], visible: Int[Array, "batch visible"]
) -> Float[Array, "batch visible width"]:
    """The visible tokens, in the order of the indices."""
    return jnp.take_along_axis(tokens, visible[..., None], axis=1)


def scatter(
    tokens: Float[Array, "batch length width"],
    visible: Int[Array, "batch visible"],
    fill: Float[Array, " width"],
    patches: int,
    *,
    leading: int = 0,
) -> Float[Array, "batch {leading}+{patches} width"]:
    """Puts visible tokens at the indices of their patches, and `fill`, the mask token, at all other indices.

    Args:
      leading: number of tokens that belong to no patch, such as a class token; they stay in front.
    """
    canvas = jnp.broadcast_to(fill, (tokens.shape[0], leading + patches, tokens.shape[-1])).astype(tokens.dtype)
    canvas = canvas.at[:, :leading].set(tokens[:, :leading])
    indices, values = leading + visible, tokens[:, leading:]
    return jax.vmap(lambda canvas, index, values: canvas.at[index].set(values))(canvas, indices, values)
