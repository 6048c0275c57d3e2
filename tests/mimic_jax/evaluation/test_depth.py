"""Metrics of depth against the published program's numbers and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.evaluation import depth

measure = jax.jit(depth.measure, static_argnames=("cap", "eigen"))


def add(batches):
    """Sums of every row of every batch."""
    return {name: sum(batch[name].sum(0) for batch in batches) for name in batches[0]}


@pytest.fixture
def batches(parity):
    """The fixture's batches: NumPy arrays by name, channels dropped, and its results."""
    fixture = np.load(parity / "downstream_metrics.npz")
    found = sorted({key.split("/")[1] for key in fixture if key.startswith("in/depth_")})
    names = ("metres_pred", "metres_gt", "valid", "standardized_pred", "standardized_gt")
    return fixture, {batch: {name: fixture[f"in/{batch}/{name}"][:, 0] for name in names} for batch in found}


def test_published_metrics_of_each_batch(batches):
    fixture, arrays = batches
    for batch, given in arrays.items():
        prediction, truth = (depth.to_metres(jnp.asarray(given[f"standardized_{each}"])) for each in ("pred", "gt"))
        sums = depth.published_measure(prediction, truth, jnp.asarray(given["valid"]))
        found = depth.published_metrics(add([sums]))
        expected = {key.split("/")[-1]: fixture[key] for key in fixture if key.startswith(f"out/{batch}/published/")}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=f"{batch} {name}")


def test_standard_metrics_per_image_and_pooled_however_batches_are_cut(batches):
    fixture, arrays = batches
    prediction, truth, valid = (
        np.concatenate([given[name] for given in arrays.values()]) for name in ("metres_pred", "metres_gt", "valid")
    )
    for cuts in ([len(truth)], [1, len(truth)]):
        rows = zip([0, *cuts], cuts, strict=False)
        parts = [tuple(jnp.asarray(each[start:end]) for each in (prediction, truth, valid)) for start, end in rows]
        found = depth.finish(add([measure(*part) for part in parts]))
        for kind in ("pooled", "per_image"):
            prefix = f"out/depth_{kind}/"
            expected = {key.removeprefix(prefix): fixture[key] for key in fixture if key.startswith(prefix)}
            expected["silog"] = expected.pop("silog_x100")
            assert {f"{kind}/{name}" for name in expected} == {name for name in found if name.startswith(kind)}
            for name, value in expected.items():
                np.testing.assert_allclose(found[f"{kind}/{name}"], value, rtol=1e-5, err_msg=f"{kind} {name}")


def test_standardised_depths_lead_there_and_back(batches):
    _, arrays = batches
    for given in arrays.values():
        valid = given["valid"]
        metres = depth.to_metres(jnp.asarray(given["standardized_gt"]))
        np.testing.assert_allclose(depth.standardize(metres)[valid], given["standardized_gt"][valid], atol=1e-4)


def test_cap_and_crop_decide_what_is_compared():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 14, (2, 480, 640)).astype(np.float32)
    prediction = (truth * rng.uniform(0.5, 1.9, truth.shape)).astype(np.float32)
    truth[:, ::3] = 0  # unknown, though called valid
    valid = np.ones(truth.shape, bool)
    given = tuple(map(jnp.asarray, (prediction, truth, valid)))
    inside = np.zeros(truth.shape, bool)
    inside[:, 45:471, 41:601] = True
    for cap, eigen in [(None, False), (depth.CAP, False), (None, True), (depth.CAP, True)]:
        found = depth.finish(add([measure(*given, cap=cap, eigen=eigen)]))
        compared = (truth > 0) & (truth <= 10 if cap else True) & (inside if eigen else True)
        predicted = np.clip(prediction, 1e-3, 10 if cap else np.inf)
        error = np.abs(predicted[compared] / truth[compared].astype(np.float64) - 1).mean()
        np.testing.assert_allclose(found["pooled/absrel"], error, rtol=1e-5)


def test_the_eigen_crop_scales_with_the_image():
    mask = depth.eigen_mask(240, 320)
    assert np.array_equal(np.flatnonzero(mask.any(1)), np.arange(22, 236))
    assert np.array_equal(np.flatnonzero(mask.any(0)), np.arange(20, 300))


def test_images_without_a_known_depth_do_not_count():
    truth = np.full((3, 2, 2), 2, np.float32)
    truth[1] = 0
    prediction = np.array([3, 1, 4], np.float32)[:, None, None] * np.ones_like(truth)
    sums = measure(*map(jnp.asarray, (prediction, truth, np.ones(truth.shape, bool))))
    np.testing.assert_allclose(depth.finish(add([sums]))["per_image/rmse"], 1.5)
    nothing = {name: value[1:2] for name, value in sums.items()}
    assert all(np.isnan(value) for value in depth.finish(add([nothing])).values())
