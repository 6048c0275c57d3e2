"""Metrics of normals against the fixture, plain NumPy and known angles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.evaluation import normals

measure = jax.jit(normals.measure)


def finished(*given):
    return normals.finish({name: value.sum(0) for name, value in measure(*map(jnp.asarray, given)).items()})


def last(array):
    return array.transpose(0, 2, 3, 1).astype(np.float32)


def test_pooled_metrics_are_the_fixtures(parity):
    fixture = np.load(parity / "downstream_metrics.npz")
    prediction, truth = (last(fixture[f"in/normal/{name}"]) for name in ("pred_raw", "gt_unit"))
    valid = fixture["in/normal/valid"]
    found = finished(prediction, truth, valid)
    names = {key.split("/")[-1]: value for key, value in fixture.items() if key.startswith("out/normal/")}
    l1, median = names.pop("taskonomy_l1"), names.pop("median")
    for name, value in names.items():
        np.testing.assert_allclose(found[f"pooled/{name}"], value, rtol=1e-5, err_msg=name)
    # From a histogram; the fixture has so few pixels that bins near the median are empty.
    degrees = np.asarray(normals.angles(jnp.asarray(prediction), jnp.asarray(truth)))[valid]
    np.testing.assert_allclose(np.median(degrees), median, rtol=1e-5)
    below, above = np.sort(degrees)[[(len(degrees) - 1) // 2, len(degrees) // 2]]
    assert below - 0.02 < found["pooled/median"] < above + 0.02
    encoded = [2 * last(fixture[f"in/normal/{name}_encoded01"]) - 1 for name in ("pred", "gt")]
    np.testing.assert_allclose(finished(*encoded, valid)["pooled/l1_x1000"], 1000 * l1, rtol=1e-5)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=(2, 3, 40, 50, 3))
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    prediction = (truth + np.array([0.1, 0.3, 0.6])[:, None, None, None] * noise) * rng.uniform(0.1, 5, (3, 40, 50, 1))
    valid = rng.random((3, 40, 50)) < 0.7
    valid[2, :, 1:] = False
    return prediction.astype(np.float32), truth.astype(np.float32), valid


def test_metrics_per_image_are_plain_numpys_and_the_pooled_median_is_near(drawn):
    prediction, truth, valid = drawn
    cosine = (prediction * truth).sum(-1) / np.linalg.norm(prediction, axis=-1)
    degrees = [np.degrees(np.arccos(np.clip(cosine[row], -1, 1)))[valid[row]] for row in range(3)]
    found = finished(*drawn)
    for name, function in {
        "median": np.median,
        "mean": np.mean,
        "rmse": lambda each: np.sqrt(np.mean(each**2)),
        "within_11.25": lambda each: 100 * np.mean(each < 11.25),
    }.items():
        np.testing.assert_allclose(found[f"per_image/{name}"], np.mean([function(each) for each in degrees]), rtol=1e-4)
    assert abs(found["pooled/median"] - np.median(np.concatenate(degrees))) < 0.02
    l1 = np.abs(prediction - truth)[valid].mean() / 2
    np.testing.assert_allclose(found["pooled/l1_x1000"], 1000 * l1, rtol=1e-5)


def test_small_and_large_angles_are_exact():
    for degrees in (0, 0.001, 0.01, 90, 179.99, 180):
        radians = np.radians(degrees)
        prediction = jnp.asarray(np.float32([[[[3 * np.cos(radians), 3 * np.sin(radians), 0]]]]))
        found = normals.angles(prediction, jnp.asarray(np.float32([[[[1, 0, 0]]]])))
        np.testing.assert_allclose(found, degrees, rtol=1e-5, atol=1e-6)
    assert normals.angles(jnp.zeros((1, 1, 1, 3)), jnp.asarray(np.float32([[[[0, 0, 1]]]])))[0, 0, 0] == 90


def test_images_without_a_valid_pixel_do_not_count(drawn):
    prediction, truth, valid = drawn
    alone = finished(prediction[:1], truth[:1], valid[:1])
    valid = np.stack([valid[0], np.zeros_like(valid[0]), np.zeros_like(valid[0])])
    found = finished(prediction, truth, valid)
    for name, value in alone.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert all(np.isnan(value) for value in finished(prediction, truth, np.zeros_like(valid)).values())
