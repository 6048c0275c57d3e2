"""Dropout and drop path with one random key per row.

Keys are made once for the whole batch and travel with its rows, so that a row's draw depends neither on the other rows
of the batch nor on accumulation, devices or hosts.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

# One typed key per row, such as jax.random.split(key, batch).
Keys = Key[Array, " batch"]
Scalar = float | Float[Array, ""]


def dropout(tokens: Float[Array, "batch ..."], rate: Scalar, keys: Keys | None) -> Float[Array, "batch ..."]:
    """Zeroes each element with probability `rate` and divides the others by 1 − rate.

    Args:
      rate: in [0, 1).
      keys: None in evaluation: nothing is dropped.

    Source: Srivastava et al. 2014, scaled in training.
    """
    if keys is None:
        return tokens
    return keep(tokens, rate, jax.vmap(lambda key: jax.random.uniform(key, tokens.shape[1:]))(keys))


def drop_path(
    branch: Float[Array, "batch length *rest"],
    rate: Scalar,
    keys: Keys | None,
    segment_lengths: Sequence[int] | None = None,
) -> Float[Array, "batch length *rest"]:
    """Zeroes a residual branch for whole rows with probability `rate` and divides the other rows by 1 − rate.

    Args:
      branch: what a block would add to its tokens.
      rate: in [0, 1).
      keys: None in evaluation: nothing is dropped.
      segment_lengths: lengths of the segments of each row, such as two views; each segment is dropped by itself. One
        segment by default.

    Source: Huang et al. 2016 (stochastic depth), per example.
    """
    if keys is None:
        return branch
    lengths = segment_lengths or [branch.shape[1]]
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (len(lengths),)))(keys)
    if len(lengths) > 1:
        uniforms = jnp.repeat(uniforms, np.asarray(lengths), axis=1, total_repeat_length=sum(lengths))
    return keep(branch, rate, uniforms.reshape(*uniforms.shape, *(1,) * (branch.ndim - 2)))


def keep(values: Float[Array, "*shape"], rate: Scalar, uniforms: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """values / (1 − rate) · ⌊(1 − rate) + u⌋ for uniforms u in [0, 1), computed in float32."""
    kept = 1 - jnp.asarray(rate, jnp.float32)
    return (values.astype(jnp.float32) / kept * jnp.floor(kept + uniforms)).astype(values.dtype)


def layer_rates(rate: float, depth: int) -> Float[np.ndarray, " {depth}"]:
    """Drop-path rates of the blocks of a stack: rate · i / (depth − 1) for block i."""
    return np.linspace(0, rate, depth, dtype=np.float32)


def fold_in(keys: Keys, number: int | Int[Array, ""]) -> Keys:
    """New keys of the rows for one of several draws, such as one layer's."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
