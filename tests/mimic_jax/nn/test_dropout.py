"""Dropout and drop path against NumPy with the same uniforms, and their independence of the other rows of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import ViT
from mimic_jax.nn.blocks import DecoderBlock, EncoderBlock, scan_blocks, stack_blocks
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.dropout import drop_path, dropout, keep, layer_rates
from mimic_jax.nn.positions import grid_positions, rotation_2d

WIDTH, HEADS, DEPTH, BATCH = 16, 2, 3, 6
KEYS = jax.random.split(jax.random.key(7), BATCH)
TOKENS, CONTEXT = jax.random.normal(jax.random.key(0), (2, BATCH, 6, WIDTH))
ROTATION = rotation_2d(grid_positions(2, 3)[None], WIDTH // HEADS, 100.0)
# So high that every branch is dropped for some rows and kept for others.
RATE = 0.6


def test_drop_path_matches_the_published_code(parity):
    fixture = np.load(parity / "downstream_layer_decay.npz")
    branch, uniforms, rate = (fixture[f"in/droppath/{name}"] for name in ("x", "uniform", "rate"))
    found = keep(jnp.asarray(branch), float(rate), jnp.asarray(uniforms))
    np.testing.assert_allclose(found, fixture["out/droppath/y"], rtol=1e-6)
    np.testing.assert_array_equal(drop_path(jnp.asarray(branch), float(rate), None), fixture["out/droppath/y_eval"])
    tables = [key for key in fixture if key.startswith("out/droppath_rates_")]
    assert tables
    for key in tables:
        rate, depth = key.split("_")[-2:]
        np.testing.assert_allclose(layer_rates(float(rate), int(depth)), fixture[key], atol=1e-6, err_msg=key)


def test_dropout_zeroes_elements_and_keeps_the_mean():
    """By hand from the row's own uniforms, and within five standard errors of the expected count."""
    tokens = jnp.ones((BATCH, 50, 40))
    found = np.asarray(dropout(tokens, 0.25, KEYS))
    for row, key in enumerate(KEYS):
        uniforms = np.asarray(jax.random.uniform(key, (50, 40)))
        np.testing.assert_allclose(found[row], np.where(uniforms >= 0.25, 1 / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose((found > 0).mean(), 0.75, atol=5 * np.sqrt(0.25 * 0.75 / found.size))
    assert dropout(tokens, 0.25, None) is tokens


def test_segments_of_a_row_are_dropped_by_themselves():
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(drop_path(jnp.ones((4000, 5, 1)), 0.5, keys, (2, 3)))[..., 0]
    first, second = found[:, 0], found[:, 2]
    np.testing.assert_array_equal(found, np.repeat(np.stack([first, second], 1), (2, 3), axis=1))
    # Two independent coins: each of the four outcomes has probability 1/4.
    for outcome in range(4):
        share = ((first > 0) * 2 + (second > 0) == outcome).mean()
        np.testing.assert_allclose(share, 0.25, atol=5 * np.sqrt(0.1875 / 4000))


def kept(row, layer, branch, rate):
    """The factor ⌊(1 − q) + u⌋ / (1 − q) of a branch, from the row's key."""
    key = jax.random.fold_in(jax.random.fold_in(KEYS[row], layer), branch)
    return np.floor(1 - rate + float(jax.random.uniform(key))) / (1 - rate)


def by_hand(block, tokens, row, layer, rate):
    """One row through one block, each branch scaled by its own factor."""
    if isinstance(block, EncoderBlock):
        branches = [
            lambda x: block.attention(block.norm1(x), ROTATION),
            lambda x: block.mlp(block.norm2(x)),
        ]
    else:
        context = block.norm_context(CONTEXT[row][None])
        branches = [
            lambda x: block.attention(block.norm1(x), ROTATION),
            lambda x: block.cross_attention(block.norm2(x), context, ROTATION, ROTATION),
            lambda x: block.mlp(block.norm3(x)),
        ]
    for index, branch in enumerate(branches):
        tokens = tokens + kept(row, layer, index, rate) * branch(tokens)
    return tokens


@pytest.mark.parametrize("kind", [EncoderBlock, DecoderBlock])
def test_a_stack_drops_each_branch_of_each_row_and_layer_by_its_own_draw(kind):
    """A scanned stack with recomputation against a loop over rows, layers and branches."""
    make = lambda: kind(WIDTH, HEADS, rngs=nnx.Rngs(0), compute=Compute(remat="dots"))  # noqa: E731
    blocks = stack_blocks(make, DEPTH)
    others = (ROTATION,) if kind is EncoderBlock else (CONTEXT, ROTATION, ROTATION)
    found, layers = jax.jit(lambda tokens: scan_blocks(blocks, tokens, *others, drop_path=RATE, keys=KEYS))(TOKENS)
    block, rates = make(), [RATE * layer / (DEPTH - 1) for layer in range(DEPTH)]
    for row in range(BATCH):
        tokens = TOKENS[row][None]
        for layer, rate in enumerate(rates):
            tokens = by_hand(block, tokens, row, layer, rate)
            np.testing.assert_allclose(layers[layer, row], tokens[0], rtol=1e-4, atol=1e-4)
    factors = [kept(row, layer, 0, rates[layer]) for row in range(BATCH) for layer in range(1, DEPTH)]
    assert min(factors) == 0 < max(factors)
    np.testing.assert_array_equal(found, layers[-1])


SIZES = Sizes(WIDTH, DEPTH, HEADS, patch_size=4)


def test_a_row_does_not_depend_on_the_other_rows():
    """Bit for bit in the draws; the features of a row alone and in a batch differ by rounding."""
    model = ViT(SIZES, rngs=nnx.Rngs(0), drop_path=RATE)
    images = jax.random.normal(jax.random.key(1), (BATCH, 8, 12, 3))
    features, layers = model(images, keys=KEYS), model.layers(images, keys=KEYS)
    np.testing.assert_allclose(layers[-1], features, rtol=1e-5, atol=1e-5)
    order = jnp.array([4, 1, 3])
    np.testing.assert_allclose(model(images[order], keys=KEYS[order]), features[order], rtol=1e-5, atol=1e-5)
    assert not np.allclose(model(images[order], keys=KEYS[jnp.array([1, 4, 0])]), features[order], atol=1e-2)


def test_nothing_is_dropped_without_keys():
    images = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    model, plain = ViT(SIZES, rngs=nnx.Rngs(0), drop_path=RATE), build("vit", SIZES, nnx.Rngs(0))
    np.testing.assert_array_equal(model(images), plain.encode(images))
    assert not np.allclose(model(images, keys=KEYS[:2]), plain.encode(images), atol=1e-2)


def test_gradients_pass_only_through_kept_branches():
    """The recomputed forward pass draws the same: a row whose branches are all dropped has an identity Jacobian."""
    make = lambda: EncoderBlock(WIDTH, HEADS, rngs=nnx.Rngs(0), compute=Compute(remat="full"))  # noqa: E731
    block = stack_blocks(make, 2)
    total = lambda tokens: scan_blocks(block, tokens, ROTATION, drop_path=0.9, keys=KEYS)[0].sum()  # noqa: E731
    first = scan_blocks(block, TOKENS, ROTATION, drop_path=0.9, keys=KEYS)[1][0]
    single = stack_blocks(make, 1)
    expected = jax.grad(lambda tokens: scan_blocks(single, tokens, ROTATION)[0].sum())(TOKENS)
    np.testing.assert_allclose(first, scan_blocks(single, TOKENS, ROTATION)[0], rtol=1e-5, atol=1e-5)
    found = jax.grad(total)(TOKENS)
    dropped = [row for row in range(BATCH) if not any(kept(row, 1, branch, 0.9) for branch in (0, 1))]
    assert len(dropped) > 0
    np.testing.assert_allclose(found[np.array(dropped)], expected[np.array(dropped)], rtol=1e-4, atol=1e-5)


def test_a_drop_path_rate_is_below_one():
    with pytest.raises(ValueError, match=r"drop_path 1\.0"):
        ViT(SIZES, rngs=nnx.Rngs(0), drop_path=1.0)
