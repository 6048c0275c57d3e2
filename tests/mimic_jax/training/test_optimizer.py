"""The schedule and AdamW against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimic_jax.interop.names import CROCO, MAE, MIMIC, from_published
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from mimic_jax.training.optimizer import adamw, decays, learning_rate


def test_schedule_is_linear_then_half_a_cosine():
    schedule = learning_rate(1.5e-4, batch_size=512, warmup_steps=20, total_steps=100)
    peak = 1.5e-4 * 512 / 256
    for step in range(101):
        warm, cooling = peak * step / 20, peak * 0.5 * (1 + np.cos(np.pi * (step - 20) / 80))
        expected = warm if step < 20 else cooling
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-6 * peak)


@pytest.mark.parametrize(
    ("file", "kind", "names", "others"),
    [
        ("croco_cosine", "croco", CROCO, {}),
        ("mimic_croco_cls", "croco", MIMIC, {"class_token": True}),
        ("mae", "mae", MAE, {"class_token": True}),
    ],
)
def test_decay_spares_what_is_one_dimensional_in_the_published_model(parity, file, kind, names, others):
    fixture = np.load(parity / f"{file}.npz")
    tensors = {
        key.removeprefix("param/"): np.full_like(fixture[key], fixture[key].ndim > 1)
        for key in fixture
        if key.startswith("param/")
    }
    sizes = Sizes(64, 3, 4, 48, 2, 4, positions="cosine", **others)
    expected = from_published(abstract(kind, sizes), tensors, names)
    found = decays(expected)
    assert jax.tree.all(jax.tree.map(lambda marked, decayed: bool((marked == decayed).all()), expected, found))


def test_an_update_is_adamw_by_hand():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    gradients = {"kernel": jnp.array([[0.5, 0.1]]), "bias": jnp.array([-0.2])}
    optimizer = adamw(lambda _: 0.01, b1=0.9, b2=0.95, weight_decay=0.05)
    state = optimizer.init(params)
    expected = jax.tree.map(np.float64, params)
    mean, square = (dict.fromkeys(params, 0.0) for _ in range(2))
    for step in (1, 2, 3):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in gradients.items():
            gradient = np.float64(gradient)
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.95 * square[name] + 0.05 * gradient**2
            adam = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.95**step)) + 1e-8)
            decay = 0.05 * expected[name] if name == "kernel" else 0
            expected[name] = expected[name] - 0.01 * (adam + decay)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)
