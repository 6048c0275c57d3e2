"""Stacks of blocks: rematerialisation, types, segments, second derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.nn.blocks import EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layers import affine, gelu
from mimic_jax.nn.positions import grid_positions, rotation_2d

WIDTH, HEADS = 32, 2
TOKENS = jax.random.normal(jax.random.key(0), (2, 6, WIDTH))
ROTATION = rotation_2d(grid_positions(2, 3)[None], WIDTH // HEADS, 100.0)


def gradient(**options):
    """The gradient function of the sum of two blocks' output by their parameters, and the parameters."""
    make = lambda: EncoderBlock(WIDTH, HEADS, rngs=nnx.Rngs(0), compute=Compute(**options))  # noqa: E731
    graph, params = nnx.split(stack_blocks(make, 2))
    return jax.grad(lambda params: scan_blocks(nnx.merge(graph, params), TOKENS, ROTATION)[0].sum()), params


def products(jaxpr):
    """Matrix products in a program, those of loops once."""
    inner = (each for equation in jaxpr.eqns for each in jax.tree.leaves(equation.params, is_leaf=_is_program))
    below = sum(products(getattr(each, "jaxpr", each)) for each in inner if _is_program(each))
    return below + sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)


def _is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def test_each_policy_recomputes_its_products():
    """A block has six products: "dots" recomputes the scores; "full" all but the last, whose result is not needed."""
    counts = {}
    for remat in ("none", "dots", "full"):
        function, params = gradient(remat=remat)
        counts[remat] = products(jax.make_jaxpr(function)(params).jaxpr)
    assert counts["dots"] == counts["none"] + 1
    assert counts["full"] == counts["none"] + 5


def test_fused_attention_is_recomputed_only_by_full(monkeypatch):
    """In the traced program: one forward kernel where products are saved, two where the block is recomputed."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    counts = {}
    for remat in ("none", "dots", "full"):
        function, params = gradient(remat=remat, attention="cudnn", dtype=jnp.dtype("bfloat16"))
        counts[remat] = str(jax.make_jaxpr(function)(params)).count("dot_product_attention_fwd_wrapper[")
    assert counts == {"none": 1, "dots": 1, "full": 2}


@pytest.mark.parametrize("options", [{"remat": "dots"}, {"remat": "full"}, {"scan": False}])
def test_options_change_only_rounding(options):
    plain, params = gradient()
    expected, found = plain(params), gradient(**options)[0](params)
    for (path, a), (_, b) in zip(nnx.to_flat_state(expected), nnx.to_flat_state(found), strict=True):
        np.testing.assert_allclose(b.get_value(), a.get_value(), rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_gelu_saves_only_its_input():
    """And is x Φ(x), with the derivative Φ(x) + x φ(x), by Python's own error function."""
    x = jnp.linspace(-9, 9, 181)
    result, pull = jax.vjp(gelu, x)
    distribution = np.array([(1 + math.erf(each / math.sqrt(2))) / 2 for each in x.tolist()])
    density = np.exp(-np.square(x, dtype=np.float64) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(result, x * distribution, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], distribution + x * density, rtol=1e-5, atol=1e-6)
    assert [each.shape for each in jax.tree.leaves(pull)] == [x.shape]
    half = jax.vjp(gelu, x.astype(jnp.bfloat16))
    assert half[0].dtype == half[1](half[0])[0].dtype == jnp.bfloat16


def test_segments_do_not_attend_to_each_other():
    block = EncoderBlock(WIDTH, HEADS, rngs=nnx.Rngs(0))
    together = block(TOKENS, ROTATION, (2, 4))
    apart = [block(TOKENS[:, segment], ROTATION[:, :, segment]) for segment in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(together, jnp.concatenate(apart, axis=1), rtol=1e-5, atol=1e-5)


def test_sums_that_make_gradients_are_float32():
    """Of 4096 rows of ones times 1 + 1/256, which bfloat16 has: each device's sum is exact, not rounded to 16 bits."""
    rows = jnp.full((4096, 1), 1, jnp.bfloat16)
    kernel, bias = jnp.ones((1, 1)), jnp.zeros((1,))
    weights = jnp.full((4096, 1), 1 + 1 / 128, jnp.bfloat16)
    of_kernel, of_bias = jax.grad(
        lambda kernel, bias: (affine(None, None, rows, kernel, bias) * weights).astype(jnp.float32).sum(), (0, 1)
    )(kernel, bias)
    assert of_kernel.dtype == of_bias.dtype == jnp.float32
    assert float(of_kernel[0, 0]) == float(of_bias[0]) == 4096 + 32


def energy(params, graph, tokens):
    """A loss with a gradient inside: the squared gradient of a stack's output by its tokens (an eikonal term)."""
    blocks = nnx.merge(graph, params)
    inner = jax.grad(lambda tokens: jnp.sin(scan_blocks(blocks, tokens, ROTATION)[0]).sum())
    return jnp.square(inner(tokens)).sum()


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_reverse_over_reverse_equals_derivatives_of_plain_jax(monkeypatch, remat):
    """The custom derivatives of `affine` and `gelu` are differentiated once more by those that JAX makes."""
    make = lambda: EncoderBlock(WIDTH, HEADS, rngs=nnx.Rngs(0), compute=Compute(remat=remat))  # noqa: E731
    graph, params = nnx.split(stack_blocks(make, 2))
    found = jax.jit(jax.grad(energy), static_argnums=1)(params, graph, TOKENS)
    monkeypatch.setattr("mimic_jax.nn.layers.affine", plain_affine)
    monkeypatch.setattr("mimic_jax.nn.blocks.gelu", lambda x: jax.nn.gelu(x, approximate=False))
    expected = jax.jit(jax.grad(energy), static_argnums=1)(params, graph, TOKENS)
    for (path, a), (_, b) in zip(nnx.to_flat_state(expected), nnx.to_flat_state(found), strict=True):
        scale = float(jnp.abs(a.get_value()).max())
        np.testing.assert_allclose(b.get_value(), a.get_value(), atol=2e-4 * scale + 1e-4, err_msg=str(path))


def plain_affine(used, stored, rows, kernel, bias):
    inner = tuple(range(1, rows.ndim))
    return jnp.tensordot(rows, kernel, (inner, tuple(range(len(inner))))) + bias
