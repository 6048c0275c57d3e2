"""Pre-norm transformer blocks, and stacks of blocks that compile as one."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from mimic_jax.nn.attention import Context, ContextRotation, CrossAttention, Rotation, SelfAttention, Tokens
from mimic_jax.nn.compute import DEFAULT, REMAT, Compute
from mimic_jax.nn.dropout import Keys, Scalar, drop_path, fold_in, layer_rates
from mimic_jax.nn.layers import gelu, layer_norm, linear


class MLP(nnx.Module):
    """Two linear layers with an exact GELU between them; the hidden width is four times the width."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, compute: Compute):
        options = {"rngs": rngs, "compute": compute}
        self.expand = linear(width, 4 * width, axes_in=("embed",), axes_out=("mlp",), **options)
        self.project = linear(4 * width, width, axes_in=("mlp",), axes_out=("embed",), **options)

    def __call__(self, tokens: Tokens) -> Tokens:
        """Applies the two layers to each token."""
        # In rows throughout: a TPU pads lengths to multiples of eight, so that each reshape would be a copy.
        rows = tokens.reshape(-1, tokens.shape[-1])
        return self.project(gelu(self.expand(rows))).reshape(tokens.shape)


class EncoderBlock(nnx.Module):
    """Self-attention, then MLP; each reads normalised tokens and is added to the residual stream (ViT)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        options = {"rngs": rngs, "compute": compute}
        self.compute = compute
        self.norm1 = layer_norm(width, **options)
        self.attention = SelfAttention(width, heads, **options)
        self.norm2 = layer_norm(width, **options)
        self.mlp = MLP(width, **options)

    def __call__(
        self,
        tokens: Tokens,
        rotation: Rotation = None,
        segment_lengths: Sequence[int] | None = None,
        *,
        drop_rate: Scalar = 0.0,
        keys: Keys | None = None,
    ) -> Tokens:
        """Applies the block; the result has the type of `tokens`, the residual stream.

        Args:
          segment_lengths: lengths of the segments of `tokens`, such as two views; attention stays within a segment.
          drop_rate, keys: of drop path; None: nothing is dropped.
        """
        drop = drop_rate, keys, segment_lengths
        tokens = _add(tokens, self.attention(self.norm1(tokens), rotation, segment_lengths), 0, *drop)
        return _add(tokens, self.mlp(self.norm2(tokens)), 1, *drop)


class DecoderBlock(nnx.Module):
    """Self-attention on view 1, cross-attention to view 2, MLP (CroCo, section 3.2). View 2 is not changed."""

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
        self,
        tokens: Tokens,
        context: Context,
        rotation: Rotation = None,
        context_rotation: ContextRotation = None,
        *,
        drop_rate: Scalar = 0.0,
        keys: Keys | None = None,
    ) -> Tokens:
        """Applies the block; the result has the type of `tokens`, the residual stream.

        Args:
          tokens, context: of view 1 and of view 2.
          drop_rate, keys: of drop path; None: nothing is dropped.
        """
        tokens = _add(tokens, self.attention(self.norm1(tokens), rotation), 0, drop_rate, keys)
        attended = self.cross_attention(self.norm2(tokens), self.norm_context(context), rotation, context_rotation)
        tokens = _add(tokens, attended, 1, drop_rate, keys)
        return _add(tokens, self.mlp(self.norm3(tokens)), 2, drop_rate, keys)

    def attention_to_context(
        self, tokens: Tokens, context: Context, rotation: Rotation = None, context_rotation: ContextRotation = None
    ) -> Float[Array, "batch heads length context"]:
        """Cross-attention weights of the block, by head, for the tokens and the context that it gets."""
        tokens = _add(tokens, self.attention(self.norm1(tokens), rotation), 0)
        context = self.norm_context(context)
        return self.cross_attention.weights(self.norm2(tokens), context, rotation, context_rotation)


def _add(tokens, branch, index, drop_rate=0.0, keys=None, segment_lengths=None):
    """The residual sum, in the type of the tokens; `index` is the branch's within its block."""
    if keys is not None:
        branch = drop_path(branch, drop_rate, fold_in(keys, index), segment_lengths)
    return tokens + branch.astype(tokens.dtype)


def stack_blocks(make_block: Callable[[], nnx.Module], depth: int) -> nnx.Module:
    """`depth` blocks as one module whose every variable has a leading `layers` axis; `scan_blocks` applies it.

    A block has an attribute `compute`, as the blocks of this file have.

    Compile time then does not grow with depth, and layers are an axis that a mesh can shard. A variable without `axes`
    metadata, such as those of `nnx.Conv`, gets `layers` as its only named axis.
    """
    blocks = [make_block() for _ in range(depth)]
    graph, _ = nnx.split(blocks[0])
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(block) for block in blocks))
    for _, variable in nnx.to_flat_state(state):
        axes = variable.get_metadata().get("axes") or (None,) * (variable.get_value().ndim - 1)
        variable.set_metadata(axes=("layers", *axes))
    return nnx.merge(graph, state)


def scan_blocks(
    blocks: nnx.Module,
    tokens: Tokens,
    *others: Array | Sequence[int] | None,
    collect: Callable[[nnx.Module, Tokens], PyTree] | None = None,
    drop_path: float = 0.0,
    keys: Keys | None = None,
) -> tuple[Tokens, PyTree]:
    """Applies a stack in order: each block gets the tokens of the previous block and the same `others`.

    The tokens are carried in the type of the residual stream. Running statistics of an `nnx.BatchNorm` in the stack are
    updated in `blocks`.

    Args:
      collect: what to return of each block, given the block and its input tokens; by default its output tokens.
      drop_path: drop-path rate of the last block; rates rise linearly from 0 at the first block.
      keys: one random key per row of the batch; None: nothing is dropped.

    Returns:
      The last block's tokens, and what was collected of every block, with a leading `layers` axis. Results that are not
      used cost nothing under jit.
    """
    graph, variables = nnx.split(blocks)
    compute = blocks.compute
    depth = len(jax.tree.leaves(variables)[0])
    layers = (jnp.asarray(layer_rates(drop_path, depth)), jnp.arange(depth)) if keys is not None and drop_path else None

    def apply(tokens, layer):
        variables, drop = layer
        block = nnx.merge(graph, variables)
        options = {} if drop is None else {"drop_rate": drop[0], "keys": fold_in(keys, drop[1])}
        result = compute.constrain(block(tokens, *others, **options))
        collected = result if collect is None else collect(block, tokens)
        return result, (collected, nnx.state(block, nnx.BatchStat))

    if policy := REMAT[compute.remat]:
        # CSE cannot merge the recomputation of a loop's body with the forward pass, so that it need not be prevented.
        apply = jax.checkpoint(apply, policy=policy, prevent_cse=not compute.scan)
    tokens = compute.constrain(compute.to_residual(tokens))
    tokens, (collected, statistics) = jax.lax.scan(
        apply, tokens, (variables, layers), unroll=1 if compute.scan else True
    )
    if statistics:
        nnx.update(blocks, statistics)
    return tokens, collected
