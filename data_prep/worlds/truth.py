"""What two views truly share, from depth and poses."""

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.spatial import cKDTree


def warp_pixels(
    depth1: Float[np.ndarray, "height width"],
    pose1: Float[np.ndarray, "4 4"],
    depth2: Float[np.ndarray, "height width"],
    pose2: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    tolerance: float = 0.05,
) -> tuple[Float64[np.ndarray, "height width 2"], Bool[np.ndarray, "height width"]]:
    """Where every pixel of view 1 truly lies in view 2, as (x, y), and whether it is seen there.

    depth: metres along the optical axis, 0 where unknown. pose: camera to world, OpenCV axes. intrinsics: of both, with
    the middle of the top left pixel at (0, 0). Seen: it has a depth, lies before camera 2 and within its picture, and
    view 2's nearest pixel there is no more than `tolerance` metres nearer or farther. Positions of pixels without a
    depth or behind camera 2 are NaN.
    """
    points = points_in(depth1, pose1, pose2, intrinsics)
    z = points[..., 2]
    ahead = (depth1 > 0) & (z > 1e-6)
    position = np.full((*depth1.shape, 2), np.nan)
    position[ahead] = (points[ahead] @ intrinsics.T)[:, :2] / z[ahead, None]
    height, width = depth2.shape
    column, row = (np.where(ahead, np.rint(position[..., k]), -1) for k in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    seen_depth = np.zeros(depth1.shape)
    seen_depth[inside] = depth2[row[inside].astype(int), column[inside].astype(int)]
    return position, inside & (seen_depth > 0) & (np.abs(seen_depth - z) <= tolerance)


def covisibility(
    depth1: Float[np.ndarray, "height width"],
    pose1: Float[np.ndarray, "4 4"],
    depth2: Float[np.ndarray, "height width"],
    pose2: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    radius: float = 0.05,
) -> float:
    """The fraction of a view's pixels whose 3-D point lies within `radius` metres of a point of the other view;
    the smaller of both directions (CroCo's rule). Arguments as for warp_pixels."""
    return min(
        _near_share(depth1, pose1, depth2, pose2, intrinsics, radius),
        _near_share(depth2, pose2, depth1, pose1, intrinsics, radius),
    )


def _near_share(depth1, pose1, depth2, pose2, intrinsics, radius: float) -> float:
    points1 = points_in(depth1, pose1, pose2, intrinsics)[depth1 > 0]
    points2 = points_in(depth2, pose2, pose2, intrinsics)[depth2 > 0]
    if len(points1) == 0 or len(points2) == 0:
        return 0.0
    distance, _ = cKDTree(points2).query(points1, distance_upper_bound=np.nextafter(radius, np.inf))
    return float(np.isfinite(distance).sum() / depth1.size)


def points_in(
    depth: Float[np.ndarray, "height width"],
    pose: Float[np.ndarray, "4 4"],
    target_pose: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "height width 3"]:
    """Every pixel's 3-D point in the axes of another camera, metres; where depth is 0, this camera's own place."""
    row, column = np.mgrid[: depth.shape[0], : depth.shape[1]]
    rays = np.stack([column, row, np.ones_like(row)], axis=2) @ np.linalg.inv(intrinsics).T
    relative = np.linalg.inv(target_pose) @ pose
    return rays * depth[..., None].astype(float) @ relative[:3, :3].T + relative[:3, 3]
