"""Dense labels come back within the error that is promised, and what is unknown stays unknown."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.records import dense

SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.floats(1e-3, 1e5))
def test_depth_errs_by_half_a_unit_at_most(seed, farthest):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0, farthest, (7, 9))
    depth[0, :4] = 0, -1, np.nan, np.inf
    png, unit = dense.encode_depth(depth)
    found = dense.decode_depth(png, unit)
    assert found.dtype == np.float32
    assert (found[0, :4] == 0).all()
    known = np.isfinite(depth) & (depth > 0)
    assert ((found > 0) == known).all()
    assert unit == pytest.approx(depth[known].max() / 65535, rel=1e-6)
    far = known & (depth >= unit)
    assert np.abs(found - depth)[far].max() <= unit * 0.501 + 1e-6 * farthest


def test_depth_in_the_unit_of_a_file_is_stored_as_in_the_file():
    """NYUv2 stores millimetres: the same values must be in our PNG, as OpenCV reads it."""
    values = np.array([[0, 1, 1234], [65535, 7, 40000]], np.uint16)
    png, unit = dense.encode_depth(values / 1000, 0.001)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), values)
    assert unit == np.float32(0.001)
    np.testing.assert_allclose(dense.decode_depth(png, unit), values / 1000, rtol=1e-6)
    with pytest.raises(ValueError, match="above 65535 units"):
        dense.encode_depth(np.full((2, 2), 65.6), 0.001)


@given(SEEDS)
def test_normals_err_by_less_than_half_a_degree(seed):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(8, 8, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[0, 0], normals[0, 1], normals[1, 0] = 0, np.nan, (0, 0, -1)
    png = dense.encode_normals(normals)
    found, valid = dense.decode_normals(png)
    unknown = np.zeros((8, 8), bool)
    unknown[0, :2] = True
    assert (valid == ~unknown).all()
    assert (found[unknown] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(found[valid], axis=1), 1, atol=1e-6)
    cosine = np.clip((found * normals)[valid].sum(1), -1, 1)
    assert np.degrees(np.arccos(cosine)).max() < 0.45
    stored = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    # The formula, at one pixel: round((n + 1) / 2 · 255).
    np.testing.assert_array_equal(stored[1, 0], [128, 128, 0])


@pytest.mark.parametrize("bits", [8, 16])
def test_classes_come_back_and_the_largest_value_is_ignored(bits):
    largest = 2**bits - 1
    classes = np.array([[0, 5, -1], [largest - 1, 17, -1]])
    png = dense.encode_classes(classes, bits)
    np.testing.assert_array_equal(dense.decode_classes(png), classes)
    stored = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == f"uint{bits}"
    assert stored[0, 2] == largest
    for wrong in (largest, -2):
        with pytest.raises(ValueError, match="class indices"):
            dense.encode_classes(np.array([[wrong]]), bits)


@given(SEEDS, st.floats(0.01, 2000))
def test_flow_errs_by_half_a_unit_at_most(seed, most):
    rng = np.random.default_rng(seed)
    flow, valid = rng.uniform(-most, most, (6, 9, 2)), rng.uniform(size=(6, 9)) < 0.8
    flow[~valid] = np.nan
    png, unit = dense.encode_flow(flow, valid)
    found, known = dense.decode_flow(png, unit)
    assert (known == valid).all()
    assert (found[~valid] == 0).all()
    assert np.abs(found - flow)[valid].max(initial=0) <= most / 65534 + 1e-6 * most


def test_flow_of_kitti_is_stored_without_loss():
    """KITTI stores (flow · 64 + 2¹⁵): flow in steps of 1/64 pixel comes back exactly."""
    rng = np.random.default_rng(0)
    flow = rng.integers(-32000, 32000, (5, 6, 2)) / 64
    png, unit = dense.encode_flow(flow, np.ones((5, 6), bool), 1 / 64)
    np.testing.assert_array_equal(dense.decode_flow(png, unit)[0], flow.astype(np.float32))
    stored = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(stored[..., :2], flow * 64 + 2**15)


def test_disparity_and_where_it_is_known():
    disparity = np.array([[0, 12.5], [30.25, np.nan]])
    found, known = dense.decode_disparity(*dense.encode_disparity(disparity))
    np.testing.assert_array_equal(known, [[False, True], [True, False]])
    np.testing.assert_allclose(found, [[0, 12.5], [30.25, 0]], atol=30.25 / 65535)


def test_nothing_known_is_stored_too():
    found, valid = dense.decode_flow(*dense.encode_flow(np.full((3, 4, 2), np.nan), np.zeros((3, 4), bool)))
    assert not valid.any()
    assert (found == 0).all()
    assert (dense.decode_depth(*dense.encode_depth(np.zeros((3, 4)))) == 0).all()


def test_bytes_of_another_label_are_refused():
    flow, _ = dense.encode_flow(np.zeros((3, 4, 2)), np.ones((3, 4), bool))
    depth, unit = dense.encode_depth(np.ones((3, 4)))
    for wrong in (
        lambda: dense.decode_depth(flow, 1.0),
        lambda: dense.decode_flow(depth, unit),
        lambda: dense.decode_normals(flow),
        lambda: dense.decode_classes(b""),
        lambda: dense.decode_depth(b"junk", 1.0),
    ):
        with pytest.raises(ValueError, match="not a label's PNG"):
            wrong()
