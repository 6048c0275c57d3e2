"""Multi-head self- and cross-attention with optional rotary positions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mimic_jax.nn.layers import linear
from mimic_jax.nn.positions import rope_2d

Tokens = Float[Array, "batch length width"]
Positions = Int[Array, "*#batch length 2"]
ContextPositions = Int[Array, "*#batch context 2"]


class SelfAttention(nnx.Module):
    """softmax(QKᵀ/√d)V over one set of tokens, with a fused qkv projection."""

    def __init__(self, width: int, heads: int, *, rope_base: float | None, rngs: nnx.Rngs, dtype=None):
        head = (heads, width // heads)
        self.rope_base = rope_base
        self.qkv = linear(
            width, (3, *head), axes_in=("embed",), axes_out=(None, "heads", "head_dim"), rngs=rngs, dtype=dtype
        )
        self.out = linear(head, width, axes_in=("heads", "head_dim"), axes_out=("embed",), rngs=rngs, dtype=dtype)

    def __call__(self, tokens: Tokens, positions: Positions | None) -> Tokens:
        """Attends within `tokens`; `positions`, the (y, x) of each, are for rotary attention alone."""
        queries, keys, values = jnp.moveaxis(self.qkv(tokens), 2, 0)
        if self.rope_base is not None:
            queries, keys = (rope_2d(x, positions, self.rope_base) for x in (queries, keys))
        return self.out(jax.nn.dot_product_attention(queries, keys, values))


class CrossAttention(nnx.Module):
    """Queries from one set of tokens, keys and values from another, with three projections."""

    def __init__(self, width: int, heads: int, *, rope_base: float | None, rngs: nnx.Rngs, dtype=None):
        head = (heads, width // heads)
        project = {"axes_in": ("embed",), "axes_out": ("heads", "head_dim"), "rngs": rngs, "dtype": dtype}
        self.rope_base = rope_base
        self.query = linear(width, head, **project)
        self.key = linear(width, head, **project)
        self.value = linear(width, head, **project)
        self.out = linear(head, width, axes_in=("heads", "head_dim"), axes_out=("embed",), rngs=rngs, dtype=dtype)

    def __call__(
        self,
        tokens: Tokens,
        context: Float[Array, "batch context width"],
        positions: Positions | None,
        context_positions: ContextPositions | None,
    ) -> Tokens:
        """Attends from `tokens` to `context`, each with its own (y, x) positions."""
        queries, keys = self._queries_and_keys(tokens, context, positions, context_positions)
        return self.out(jax.nn.dot_product_attention(queries, keys, self.value(context)))

    def weights(
        self,
        tokens: Tokens,
        context: Float[Array, "batch context width"],
        positions: Positions | None,
        context_positions: ContextPositions | None,
    ) -> Float[Array, "batch heads length context"]:
        """How much each token looks at each of the context, by head: softmax(QKᵀ/√d), float32, rows sum to 1."""
        queries, keys = self._queries_and_keys(tokens, context, positions, context_positions)
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores / queries.shape[-1] ** 0.5)

    def _queries_and_keys(self, tokens, context, positions, context_positions):
        queries, keys = self.query(tokens), self.key(context)
        if self.rope_base is not None:
            queries = rope_2d(queries, positions, self.rope_base)
            keys = rope_2d(keys, context_positions, self.rope_base)
        return queries, keys
