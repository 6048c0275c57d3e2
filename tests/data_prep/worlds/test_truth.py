"""Co-visibility and true warps against closed forms."""

import numpy as np
import pytest

from data_prep.worlds import raycast, truth

SIZE = 64
INTRINSICS = raycast.pinhole(SIZE, 60)
FOCAL = INTRINSICS[0, 0]


def at(x=0.0, y=0.0, z=0.0):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def plane(depth):
    """A wall across the view, `depth` metres away."""
    return np.full((SIZE, SIZE), depth, np.float32)


def test_pixels_move_by_focal_times_baseline_over_depth():
    position, seen = truth.warp_pixels(plane(2.0), at(), plane(2.0), at(x=0.5, y=-0.2), INTRINSICS)
    row, column = np.mgrid[:SIZE, :SIZE]
    np.testing.assert_allclose(position[..., 0], column - FOCAL * 0.5 / 2, atol=1e-9)
    np.testing.assert_allclose(position[..., 1], row + FOCAL * 0.2 / 2, atol=1e-9)
    x, y = np.rint(position[..., 0]), np.rint(position[..., 1])
    np.testing.assert_array_equal(seen, (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE))


def test_a_turn_moves_pixels_by_its_homography():
    angle = np.radians(12)
    pose2 = np.eye(4)
    pose2[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    depth1 = np.random.default_rng(0).uniform(1, 5, (SIZE, SIZE)).astype(np.float32)
    position, _ = truth.warp_pixels(depth1, at(), plane(1), pose2, INTRINSICS)
    row, column = np.mgrid[:SIZE, :SIZE]
    homography = INTRINSICS @ pose2[:3, :3].T @ np.linalg.inv(INTRINSICS)
    expected = np.stack([column, row, np.ones_like(row)], 2) @ homography.T
    np.testing.assert_allclose(position, expected[..., :2] / expected[..., 2:], atol=1e-6)


def test_what_is_hidden_is_not_seen():
    hidden = plane(3.0)
    hidden[:, : SIZE // 2] = 1.0
    _, seen = truth.warp_pixels(plane(3.0), at(), hidden, at(), INTRINSICS)
    assert not seen[:, : SIZE // 2].any()
    assert seen[:, SIZE // 2 :].all()


def test_unknown_depth_and_points_behind_are_nan():
    depth = plane(2.0)
    depth[0] = 0
    position, seen = truth.warp_pixels(depth, at(), plane(2), at(), INTRINSICS)
    assert np.isnan(position[0]).all()
    assert not seen[0].any()
    assert np.isfinite(position[1:]).all()
    position, seen = truth.warp_pixels(plane(2.0), at(), plane(2), at(z=3.0), INTRINSICS)
    assert np.isnan(position).all()
    assert not seen.any()


@pytest.mark.parametrize("columns", [0, 16, 32, 64])
def test_covisibility_of_a_sidestep(columns):
    """Sidestepping by n pixels' width before a wall leaves 1 − n / size of it in both views."""
    share = truth.covisibility(plane(2), at(), plane(2), at(x=columns * 2 / FOCAL), INTRINSICS, radius=0.01)
    assert share == pytest.approx(1 - columns / SIZE)


def test_covisibility_is_the_smaller_of_both_directions():
    """Twice as near, a camera sees a quarter of the wall: all of its view is shared, a quarter of the other's."""
    for pair in ((plane(2), at(), plane(1), at(z=1)), (plane(1), at(z=1), plane(2), at())):
        assert truth.covisibility(*pair, INTRINSICS, radius=0.02) == pytest.approx(0.25)


def test_covisibility_of_nothing_is_nothing():
    behind = np.diag([-1.0, 1, -1, 1])
    assert truth.covisibility(plane(2), at(), plane(2), behind, INTRINSICS) == 0
    assert truth.covisibility(plane(0), at(), plane(2), at(), INTRINSICS) == 0


def test_five_centimetres():
    assert truth.covisibility(plane(2), at(), plane(2), at(z=0.04), INTRINSICS) > 0.9
    assert truth.covisibility(plane(2), at(), plane(2), at(z=0.06), INTRINSICS) == 0
