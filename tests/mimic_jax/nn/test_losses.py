"""Losses against the published program's numbers, plain NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.nn import losses

RNG = np.random.default_rng(0)
# The published threshold is the batch's.
PUBLISHED = {
    "berhu": lambda *given: losses.berhu(*given, losses.berhu_threshold(*given).max()),
    "l1": losses.masked_l1,
    "mse": losses.masked_mse,
}


def batch_mean(loss, prediction, target, valid):
    values, numbers = loss(prediction, target, valid)
    return (values * numbers).sum() / numbers.sum()


@pytest.mark.parametrize("name", PUBLISHED)
def test_batch_means_and_gradients_are_the_published_ones(parity, name):
    fixture = np.load(parity / "downstream_losses.npz")
    cases = sorted({key.split("/")[1] for key in fixture if key.startswith("in/") and key.endswith("/pred")})
    assert cases
    for case in cases:
        prediction, target = (
            jnp.asarray(fixture[f"in/{case}/{key}"].transpose(0, 2, 3, 1)) for key in ("pred", "target")
        )
        key = f"in/{case}/mask_valid"
        valid = jnp.asarray(fixture[key][:, 0] if key in fixture else np.ones(prediction.shape[:3], bool))
        value, gradient = jax.value_and_grad(lambda *given: batch_mean(PUBLISHED[name], *given))(
            prediction, target, valid
        )
        expected = fixture[f"out/{case}/{name}_grad"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(value, fixture[f"out/{case}/{name}"], rtol=1e-4, err_msg=case)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-3 * np.abs(expected).max(), err_msg=case)


@pytest.fixture
def rows():
    """Depths of three images, one of them without a valid pixel; what is not valid would spoil every loss."""
    target = RNG.uniform(0.5, 9, (3, 4, 5, 1)).astype(np.float32)
    prediction = (target * RNG.uniform(0.5, 1.8, target.shape)).astype(np.float32)
    valid = RNG.random((3, 4, 5)) < 0.6
    valid[1] = False
    target[~valid] = 0
    prediction[~valid] = -1e6
    return prediction, target, valid


LOSSES = {
    "l1": (losses.masked_l1, lambda p, t: np.abs(p - t).mean()),
    "mse": (losses.masked_mse, lambda p, t: np.square(p - t).mean()),
    "berhu": (losses.berhu, lambda p, t: reverse_huber(np.abs(p - t), 0.2 * np.abs(p - t).max())),
    "silog": (losses.silog, lambda p, t: np.sqrt(np.mean(np.log(p / t) ** 2) - 0.85 * np.log(p / t).mean() ** 2)),
}


def reverse_huber(error, threshold):
    return np.where(error < threshold, error, (error**2 + threshold**2) / (2 * threshold)).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_is_the_mean_of_its_valid_entries_and_depends_on_no_other_row(rows, name):
    loss, reference = LOSSES[name]
    prediction, target, valid = rows
    values, numbers = loss(*map(jnp.asarray, rows))
    np.testing.assert_array_equal(numbers, valid.sum((1, 2)))
    for row in range(3):
        expected = reference(prediction[row][valid[row]], target[row][valid[row]]) if valid[row].any() else 0
        np.testing.assert_allclose(values[row], expected, rtol=1e-5)
        one = slice(row, row + 1)
        np.testing.assert_allclose(loss(*(jnp.asarray(each[one]) for each in rows))[0], values[one], rtol=1e-6)


@pytest.mark.parametrize("name", [*LOSSES, "cosine"])
def test_gradients_are_finite_where_errors_and_valid_entries_are_none(rows, name):
    loss = losses.cosine if name == "cosine" else LOSSES[name][0]
    _, target, valid = rows
    target = jnp.asarray(np.repeat(target, 3, axis=-1) if name == "cosine" else target)
    for prediction in (target, jnp.zeros_like(target)):
        gradient = jax.grad(lambda prediction: loss(prediction, target, jnp.asarray(valid))[0].sum())(prediction)
        assert np.isfinite(gradient).all()
        assert (gradient[~valid] == 0).all()


def test_silog_ignores_scale_but_for_its_share(rows):
    _, target, valid = rows
    values, _ = losses.silog(jnp.asarray(3 * target), jnp.asarray(target), jnp.asarray(valid))
    np.testing.assert_allclose(values[0], np.sqrt(0.15) * np.log(3), rtol=1e-5)


def test_the_cosine_loss_of_known_angles_at_any_length():
    angles = np.radians([0, 60, 90, 180]).astype(np.float32)
    turned = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1).reshape(1, 2, 2, 3)
    axis = np.broadcast_to(np.float32([1, 0, 0]), turned.shape)
    valid = np.array([[[True, True], [True, False]]])
    for length in (1e-3, 1, 50):
        values, numbers = losses.cosine(jnp.asarray(length * turned), jnp.asarray(axis), jnp.asarray(valid))
        np.testing.assert_allclose(values, [(0 + 0.5 + 1) / 3], rtol=1e-5)
        np.testing.assert_array_equal(numbers, [3])
    values, _ = losses.cosine(jnp.zeros_like(axis), jnp.asarray(axis), jnp.asarray(valid))
    np.testing.assert_allclose(values, [1])
