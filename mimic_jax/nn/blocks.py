"""Pre-norm transformer blocks, and stacks of them that compile as one."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from mimic_jax.nn.attention import Context, ContextRotation, CrossAttention, Rotation, SelfAttention, Tokens
from mimic_jax.nn.compute import DEFAULT, REMAT, Compute
from mimic_jax.nn.layers import gelu, layer_norm, linear


class MLP(nnx.Module):
    """Two linear layers with an exact GELU between them; the hidden width is four times the width."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, compute: Compute):
        options = {"rngs": rngs, "compute": compute}
        self.expand = linear(width, 4 * width, axes_in=("embed",), axes_out=("mlp",), **options)
        self.project = linear(4 * width, width, axes_in=("mlp",), axes_out=("embed",), **options)

    def __call__(self, tokens: Tokens) -> Tokens:
        """Changes each token by itself."""
        # In rows throughout: a TPU pads lengths to eights, so that each change of shape would be a copy.
        rows = tokens.reshape(-1, tokens.shape[-1])
        return self.project(gelu(self.expand(rows))).reshape(tokens.shape)


class EncoderBlock(nnx.Module):
    """Self-attention, then MLP, each on normalised tokens and added to them (ViT)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        options = {"rngs": rngs, "compute": compute}
        self.compute = compute
        self.norm1 = layer_norm(width, **options)
        self.attention = SelfAttention(width, heads, **options)
        self.norm2 = layer_norm(width, **options)
        self.mlp = MLP(width, **options)

    def __call__(self, tokens: Tokens, rotation: Rotation = None, parts: Sequence[int] | None = None) -> Tokens:
        """`parts`: lengths of the parts that the tokens fall into, such as two views; attention stays within each."""
        tokens = tokens + self.attention(self.norm1(tokens), rotation, parts)
        return tokens + self.mlp(self.norm2(tokens))


class DecoderBlock(nnx.Module):
    """Self-attention on view 1, cross-attention to view 2, MLP (CroCo, section 3.2). View 2 stays as it came."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        options = {"rngs": rngs, "compute": compute}
        self.compute = compute
        self.norm1 = layer_norm(width, **options)
        self.attention = SelfAttention(width, heads, **options)
        self.norm2 = layer_norm(width, **options)
        self.norm_context = layer_norm(width, **options)
        self.cross_attention = CrossAttention(width, heads, **options)
        self.norm3 = layer_norm(width, **options)
        self.mlp = MLP(width, **options)

    def __call__(
        self, tokens: Tokens, context: Context, rotation: Rotation = None, context_rotation: ContextRotation = None
    ) -> Tokens:
        """`tokens` are of view 1, `context` of view 2."""
        tokens = tokens + self.attention(self.norm1(tokens), rotation)
        context = self.norm_context(context)
        tokens = tokens + self.cross_attention(self.norm2(tokens), context, rotation, context_rotation)
        return tokens + self.mlp(self.norm3(tokens))

    def attention_to_context(
        self, tokens: Tokens, context: Context, rotation: Rotation = None, context_rotation: ContextRotation = None
    ) -> Float[Array, "batch heads length context"]:
        """Where in `context` each of `tokens` looks, by head, when the block is given them."""
        tokens = tokens + self.attention(self.norm1(tokens), rotation)
        context = self.norm_context(context)
        return self.cross_attention.weights(self.norm2(tokens), context, rotation, context_rotation)


def stack(make_block: Callable[[], nnx.Module], depth: int) -> nnx.Module:
    """`depth` blocks as one module whose every parameter has a leading `layers` axis; `run` applies it.

    Compile time then does not grow with depth, and layers are an axis that a mesh can shard.
    """
    blocks = [make_block() for _ in range(depth)]
    graph, _ = nnx.split(blocks[0])
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(block) for block in blocks))
    for _, parameter in nnx.to_flat_state(state):
        parameter.set_metadata(axes=("layers", *parameter.get_metadata()["axes"]))
    return nnx.merge(graph, state)


def run(
    blocks: nnx.Module,
    tokens: Tokens,
    *others: Array | Sequence[int] | None,
    read: Callable[[nnx.Module, Tokens], PyTree] | None = None,
) -> tuple[Tokens, PyTree]:
    """Applies a stack in order: each block gets the tokens of the one before and the same `others`.

    Args:
      read: what to keep of each block, given the block and the tokens it gets; what it makes of them by default.

    Returns:
      The last block's tokens, and what was kept of every block, with a leading `layers` axis; what is not used of it
      costs nothing under jit.
    """
    graph, parameters = nnx.split(blocks)
    compute = blocks.compute

    def apply(tokens, layer):
        block = nnx.merge(graph, layer)
        result = compute.place(block(tokens, *others))
        return result, result if read is None else read(block, tokens)

    if policy := REMAT[compute.remat]:
        # In a loop nothing outside can be taken for what is computed again.
        apply = jax.checkpoint(apply, policy=policy, prevent_cse=not compute.scan)
    return jax.lax.scan(apply, compute.place(tokens), parameters, unroll=1 if compute.scan else True)
