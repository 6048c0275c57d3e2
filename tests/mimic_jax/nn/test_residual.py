"""The type of the residual stream, in stacks and through the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.models import completion
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.blocks import EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import Compute

BFLOAT16, FLOAT32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
SIZES = {"encoder_width": 32, "encoder_depth": 2, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 2}
SIZES |= {"decoder_heads": 2, "patch_size": 8}


def output(depth, tokens, **options):
    make = lambda: EncoderBlock(32, 2, rngs=nnx.Rngs(0), compute=Compute(remat="dots", **options))  # noqa: E731
    return scan_blocks(stack_blocks(make, depth), tokens)


@pytest.mark.parametrize(("residual", "expected"), [(None, BFLOAT16), (BFLOAT16, BFLOAT16), (FLOAT32, FLOAT32)])
def test_a_stack_carries_tokens_in_the_residual_type(residual, expected):
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 32))
    last, layers = output(3, tokens, dtype=BFLOAT16, residual_dtype=residual)
    assert last.dtype == layers.dtype == expected


def test_a_float32_stream_keeps_what_bfloat16_rounds_away():
    """At 256 the step of bfloat16 is 2, and blocks add about 1: a bfloat16 stream loses nearly all of it."""
    tokens = 256 + jax.random.normal(jax.random.key(0), (2, 6, 32))
    exact = output(1, tokens)[0] - tokens
    kept = output(1, tokens, dtype=BFLOAT16, residual_dtype=FLOAT32)[0] - tokens
    lost = output(1, tokens, dtype=BFLOAT16, residual_dtype=BFLOAT16)[0] - tokens
    error = lambda found: float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))  # noqa: E731
    assert error(kept) < 0.02 < 0.2 < error(lost)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("croco", {"positions": "rope100"}), ("croco", {"positions": "cosine"}), ("mae", {"positions": "cosine"})],
)
def test_models_multiply_in_one_type_and_add_in_another(kind, changes):
    """In the traced program: every product is bfloat16, every loop carries the tokens in float32."""
    compute = Compute(dtype=BFLOAT16, residual_dtype=FLOAT32)
    sizes = Sizes(**SIZES | changes)
    model = build(kind, sizes, nnx.Rngs(0), compute)
    views = jax.random.normal(jax.random.key(0), (model.views, 2, 16, 24, 3))
    visible = completion.random_visible(jax.random.key(1), views[0], sizes)
    graph, params = nnx.split(model)
    program = jax.make_jaxpr(lambda params: nnx.merge(graph, params)(*views, visible))(params)
    loops, products = [], []
    for equation in equations(program.jaxpr):
        if equation.primitive.name == "scan":
            first = equation.params["num_consts"]
            loops += [each.aval.dtype for each in equation.invars[first : first + equation.params["num_carry"]]]
        elif equation.primitive.name == "dot_general":
            products += [each.aval.dtype for each in equation.invars]
    assert loops == [FLOAT32] * 2
    assert set(products) == {BFLOAT16}
    assert program.out_avals[0].dtype == BFLOAT16
    if kind == "croco":  # features are of the type of activations
        assert model.decode(*model.encoder.encode_views(*((view, None) for view in views)), (2, 3)).dtype == BFLOAT16
    plain = build(kind, sizes, nnx.Rngs(0))(*views, visible)
    error = jnp.linalg.norm(model(*views, visible).astype(FLOAT32) - plain) / jnp.linalg.norm(plain)
    assert 0 < float(error) < 0.02


def equations(jaxpr):
    """Equations of a program and of the programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        is_program = lambda each: hasattr(each, "eqns") or hasattr(each, "jaxpr")  # noqa: E731
        for each in jax.tree.leaves(equation.params, is_leaf=is_program):
            if is_program(each):
                yield from equations(getattr(each, "jaxpr", each))


def test_gradients_of_parameters_are_float32():
    sizes = Sizes(**SIZES)
    compute = Compute(dtype=BFLOAT16, residual_dtype=FLOAT32, remat="full")
    losses = {}
    for name, each in {"plain": Compute(), "mixed": compute}.items():
        model = build("mae", sizes, nnx.Rngs(0), each)
        images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
        visible = completion.random_visible(jax.random.key(1), images, sizes)
        graph, params = nnx.split(model)
        loss = lambda params: completion.loss(nnx.merge(graph, params), (images,), visible).mean()  # noqa: B023, E731
        losses[name] = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert {leaf.dtype for leaf in losses["mixed"]} == {np.dtype("float32")}
    norm = lambda leaves: np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in leaves))  # noqa: E731
    difference = [a - b for a, b in zip(losses["mixed"], losses["plain"], strict=True)]
    assert norm(difference) < 0.03 * norm(losses["plain"])
