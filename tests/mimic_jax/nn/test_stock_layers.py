"""Layers of Flax beside and within ours: no `axes` metadata, and running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mimic_jax.nn.blocks import EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import DEFAULT

DEPTH, WIDTH = 3, 8
TOKENS = jax.random.normal(jax.random.key(0), (4, 6, WIDTH))


class ConvBlock(nnx.Module):
    """A residual convolution with batch normalisation, along the length."""

    def __init__(self, rngs: nnx.Rngs):
        self.compute = DEFAULT
        self.conv = nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.5, rngs=rngs)

    def __call__(self, tokens):
        return tokens + self.norm(self.conv(tokens))


def test_a_stack_of_stock_layers_equals_a_loop():
    """Outputs and running statistics, which the stack updates for each layer."""
    rngs = nnx.Rngs(0)
    blocks = [ConvBlock(rngs) for _ in range(DEPTH)]
    made = iter(blocks)
    stacked = stack_blocks(lambda: next(made), DEPTH)
    graph, kernels, statistics = nnx.split(stacked, nnx.Param, nnx.BatchStat)

    @jax.jit
    def apply(kernels, statistics):
        model = nnx.merge(graph, kernels, statistics)
        result, _ = scan_blocks(model, TOKENS)
        return result, nnx.state(model, nnx.BatchStat)

    found, updated = apply(kernels, statistics)
    tokens = TOKENS
    for layer, block in enumerate(blocks):
        inner = block.conv(tokens)
        mean, variance = np.mean(inner, (0, 1)), np.var(inner, (0, 1))
        np.testing.assert_allclose(updated["norm"]["mean"].get_value()[layer], 0.5 * mean, atol=1e-5)
        np.testing.assert_allclose(updated["norm"]["var"].get_value()[layer], 0.5 + 0.5 * variance, rtol=1e-5)
        tokens = block(tokens)
    np.testing.assert_allclose(found, tokens, rtol=1e-4, atol=1e-5)


def test_variables_without_axes_get_the_layers_axis():
    rngs = nnx.Rngs(0)
    stacked = stack_blocks(lambda: ConvBlock(rngs), DEPTH)
    assert stacked.conv.kernel.get_metadata()["axes"] == ("layers", None, None, None)
    assert stacked.norm.mean.get_metadata()["axes"] == ("layers", None)
    ours = stack_blocks(lambda: EncoderBlock(WIDTH, 2, rngs=rngs), DEPTH)
    assert ours.mlp.expand.kernel.get_metadata()["axes"] == ("layers", "embed", "mlp")


class Mixed(nnx.Module):
    """Our blocks with stock layers after them: a feature map enlarged by a transposed convolution."""

    def __init__(self, rngs: nnx.Rngs):
        self.blocks = stack_blocks(lambda: EncoderBlock(WIDTH, 2, rngs=rngs), DEPTH)
        self.enlarge = nnx.ConvTranspose(WIDTH, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.conv = nnx.Conv(4, 1, (1, 1), rngs=rngs)

    def __call__(self, tokens):
        tokens, _ = scan_blocks(self.blocks, tokens)
        return self.conv(self.norm(self.enlarge(tokens.reshape(-1, 2, 3, WIDTH))))


def test_stock_layers_train_beside_ours():
    """A step of gradient descent lowers the loss and moves the running statistics."""
    graph, *states = nnx.split(Mixed(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    params, statistics = map(nnx.to_pure_dict, states)

    @jax.jit
    def step(params, statistics):
        def loss(params):
            # As plain dicts, from which merge makes new variables: a variable of an outer trace cannot be updated.
            model = nnx.merge(graph, params, statistics)
            value = jnp.square(model(TOKENS) - 1).mean()
            return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients), updated

    first, params, updated = step(params, statistics)
    assert step(params, updated)[0] < first
    assert not np.allclose(jax.tree.leaves(updated)[0], jax.tree.leaves(statistics)[0])
