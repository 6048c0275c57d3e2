"""What one update does beside the gradient step: clipping, the average of parameters, steps that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.training.config import Lengths
from mimic_jax.training.setup import set_up
from mimic_jax.training.step import ema_decay_of
from tests.mimic_jax.planning.small import parts, small

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def setup():
    config = small(ema_decay=0.2, run__on_nonfinite="skip", run__max_skipped=1, optimizer__clip_norm=0.25)
    config.run.mesh.data = 1
    return set_up(*parts(config), Lengths(10, 0, 10), jax.devices()[:1])


@pytest.fixture(scope="module")
def batch(setup):
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, view.shape, dtype=np.uint8) for name, view in setup.batch.items()}


def on_host(tree):
    # Copies: on a CPU an array of NumPy's may look into memory that the next step is given.
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, on_host(found), expected)


def test_gradients_are_clipped_to_the_norm(setup, batch):
    state, metrics = setup.step(setup.init(jax.random.key(0)), batch, KEY)
    assert float(metrics["gradient_norm"]) > 0.25  # reported before it is clipped
    # After one step Adam's first moment is a tenth of the gradient.
    leaves = jax.tree.leaves_with_path(state.opt_state)
    moments = [np.asarray(leaf) for path, leaf in leaves if ".mu" in jax.tree_util.keystr(path)]
    np.testing.assert_allclose(10 * np.sqrt(sum(np.square(leaf).sum() for leaf in moments)), 0.25, rtol=1e-4)


def test_the_average_follows_the_parameters(setup, batch):
    """Its decay is (1 + n) / (10 + n) at update n until that reaches 0.2."""
    state = setup.init(jax.random.key(0))
    expected = on_host(state.params)
    assert_equal(state.ema_params, expected)
    for decay in (1 / 10, 2 / 11, 0.2, 0.2):
        state, _ = setup.step(state, batch, KEY)
        new = on_host(state.params)
        expected = jax.tree.map(lambda ema, new, decay=decay: decay * ema + (1 - decay) * new, expected, new)
    for found, wanted in zip(jax.tree.leaves(on_host(state.ema_params)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_the_decay_of_the_average_rises_to_its_value():
    found = [float(ema_decay_of(0.999, jnp.asarray(update, jnp.int32))) for update in (0, 1, 90, 8990, 8991, 10**6)]
    np.testing.assert_allclose(found, [1 / 10, 2 / 11, 91 / 100, 8991 / 9000, 0.999, 0.999], rtol=1e-6)


def poisoned(state):
    """Parameters that are finite, of which the loss is not."""
    return dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf * np.float32(1e30), state.params))


def test_a_step_that_is_not_finite_changes_nothing_and_after_too_many_no_step_does(setup, batch):
    good, _ = setup.step(setup.init(jax.random.key(0)), batch, KEY)
    bad = poisoned(good)
    params, moments, average = on_host(bad.params), on_host(bad.opt_state), on_host(bad.ema_params)
    state, metrics = setup.step(bad, batch, KEY)
    assert not np.isfinite(float(metrics["loss"])) or not np.isfinite(float(metrics["gradient_norm"]))
    for found, expected in ((state.params, params), (state.opt_state, moments), (state.ema_params, average)):
        assert_equal(found, expected)
    assert [int(state.step), int(state.skipped), int(metrics["skipped"])] == [2, 1, 1]

    # One may be skipped: with good parameters training continues.
    fresh = setup.init(jax.random.key(0)).params
    before = on_host(fresh)
    state, metrics = setup.step(dataclasses.replace(state, params=fresh), batch, KEY)
    assert [int(state.step), int(state.skipped), int(metrics["skipped"])] == [3, 1, 1]
    assert not np.array_equal(np.asarray(state.params["mask_token"]), before["mask_token"])

    # A second is one too many: from here on nothing changes, whatever comes.
    state, _ = setup.step(poisoned(state), batch, KEY)
    assert [int(state.step), int(state.skipped)] == [4, 2]
    fresh = setup.init(jax.random.key(0)).params
    state, metrics = setup.step(dataclasses.replace(state, params=fresh), batch, KEY)
    assert np.isfinite(float(metrics["loss"]))
    assert_equal(state.params, before)
    assert [int(state.step), int(state.skipped)] == [5, 2]
