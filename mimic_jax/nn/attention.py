"""Multi-head self- and cross-attention with optional rotary position embeddings."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mimic_jax.nn.compute import ATTENDED, Compute
from mimic_jax.nn.layers import linear
from mimic_jax.nn.positions import rope_2d

Tokens = Float[Array, "batch length width"]
Context = Float[Array, "batch context width"]
# From `rotation_2d`, for the tokens and for the context; None without rotary position embeddings.
Rotation = Float[Array, "2 *#batch length 1 2 quarter"] | None
ContextRotation = Float[Array, "2 *#batch context 1 2 quarter"] | None


class SelfAttention(nnx.Module):
    """softmax(QKᵀ/√d)V over one set of tokens, with a fused qkv projection."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, compute: Compute):
        head = (heads, width // heads)
        self.compute = compute
        options = {"rngs": rngs, "compute": compute}
        self.qkv = linear(width, (3, *head), axes_in=("embed",), axes_out=(None, "heads", "head_dim"), **options)
        self.out = linear(head, width, axes_in=("heads", "head_dim"), axes_out=("embed",), **options)

    def __call__(
        self, tokens: Tokens, rotation: Rotation = None, segment_lengths: Sequence[int] | None = None
    ) -> Tokens:
        """Attends within `tokens`.

        Args:
          segment_lengths: lengths of the segments of `tokens`, such as two views; tokens attend only within their
            segment. One segment by default.
        """
        queries, keys, values = jnp.moveaxis(self.qkv(tokens), 2, 0)
        if rotation is not None:
            queries, keys = (rope_2d(x, rotation) for x in (queries, keys))
        ends = np.cumsum(segment_lengths or [tokens.shape[1]])
        attended = [
            _attend(queries[:, start:end], keys[:, start:end], values[:, start:end], self.compute)
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
        return self.out(jnp.concatenate(attended, axis=1) if len(attended) > 1 else attended[0])


class CrossAttention(nnx.Module):
    """Queries from one set of tokens, keys and values from another, with three projections."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, compute: Compute):
        head = (heads, width // heads)
        self.compute = compute
        options = {"rngs": rngs, "compute": compute}
        project = {"axes_in": ("embed",), "axes_out": ("heads", "head_dim"), **options}
        self.query = linear(width, head, **project)
        self.key = linear(width, head, **project)
        self.value = linear(width, head, **project)
        self.out = linear(head, width, axes_in=("heads", "head_dim"), axes_out=("embed",), **options)

    def __call__(
        self, tokens: Tokens, context: Context, rotation: Rotation = None, context_rotation: ContextRotation = None
    ) -> Tokens:
        """Attends from `tokens` to `context`."""
        queries, keys = self._queries_and_keys(tokens, context, rotation, context_rotation)
        return self.out(_attend(queries, keys, self.value(context), self.compute))

    def weights(
        self, tokens: Tokens, context: Context, rotation: Rotation = None, context_rotation: ContextRotation = None
    ) -> Float[Array, "batch heads length context"]:
        """Attention weights softmax(QKᵀ/√d) of each token over the context, by head; float32, rows sum to 1."""
        queries, keys = self._queries_and_keys(tokens, context, rotation, context_rotation)
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores / queries.shape[-1] ** 0.5)

    def _queries_and_keys(self, tokens, context, rotation, context_rotation):
        queries, keys = self.query(tokens), self.key(context)
        if rotation is not None:
            queries, keys = rope_2d(queries, rotation), rope_2d(keys, context_rotation)
        return queries, keys


def _attend(queries, keys, values, compute: Compute):
    attended = jax.nn.dot_product_attention(queries, keys, values, implementation=compute.attention)
    # The fused kernel saves its result itself.
    return checkpoint_name(attended, ATTENDED) if compute.attention == "xla" else attended
