"""CroCo's recipe for 3-D scenes (MULTIVIEW-HABITAT, arXiv 2210.10716): two cameras that look at the same thing."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8

from data_prep import overlap
from data_prep.worlds import cameras, truth
from data_prep.worlds.stage import Camera, Stage

FIELD_OF_VIEW = 60.0  # degrees
# From the first camera to the second: Gaussian steps, their standard deviation along each level axis, metres.
STEPS, SPREAD = 5, 2.0
# Greatest noise of the gaze, degrees: pan, tilt, roll.
NOISE = (3.0, 10.0, 5.0)
# A pair is kept where both views have a depth at this share of their pixels, and see this much of the same.
LEAST_DEPTH, LEAST_SHARED = 0.7, 0.5
RADIUS = 0.05  # metres within which two points are the same


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two views of one stage: RGB, depth in metres (0 where nothing is seen), camera-to-world matrices."""

    image1: UInt8[np.ndarray, "size size 3"]
    image2: UInt8[np.ndarray, "size size 3"]
    depth1: Float32[np.ndarray, "size size"]
    depth2: Float32[np.ndarray, "size size"]
    pose1: Float64[np.ndarray, "4 4"]
    pose2: Float64[np.ndarray, "4 4"]


def camera(image_size: int) -> Camera:
    """60° from edge to edge."""
    return Camera(image_size, image_size / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2))


def film(stage: Stage, rng: np.random.Generator) -> Pair | str:
    """One pair, or the reason why this draw gave none.

    The first camera stands at a random place and looks a random way, level but for the noise of tilt and roll. The
    second comes from there by five Gaussian steps, each to the nearest place that can be stood on, and looks at the
    middle of all the points that the first one sees, but for noise of pan, tilt and roll.
    """
    eye = stage.place(rng)
    if eye is None:
        return "no place found"
    pose1 = _pose(eye, float(rng.uniform(0, 2 * np.pi)), 0.0, stage, rng)
    image1, depth1 = stage.render(pose1)
    if np.mean(depth1 > 0) < LEAST_DEPTH:
        return "too little depth"
    points = truth.points_in(depth1, pose1, np.eye(4), stage.camera.intrinsics)[depth1 > 0]
    for _ in range(STEPS):
        eye = stage.snap(eye, eye + rng.normal(0, SPREAD, 2) @ stage.axes[:2])
    pose2 = _pose(eye, *cameras.toward(eye, points.mean(axis=0), stage.axes), stage, rng)
    image2, depth2 = stage.render(pose2)
    if np.mean(depth2 > 0) < LEAST_DEPTH:
        return "too little depth"
    if truth.covisibility(depth1, pose1, depth2, pose2, stage.camera.intrinsics, RADIUS) < LEAST_SHARED:
        return "co-visibility too low"
    return Pair(image1, image2, depth1, depth2, pose1, pose2)


def correspondence(pair: Pair, camera: Camera, patch_size: int) -> Int16[np.ndarray, " patches"]:
    """For each patch of view 1 the patch of view 2 where most of its pixels truly are, −1 where most are not seen there
    or another patch has it already; mapped both ways, and the smaller map kept, as in the pair test."""
    one, two = (pair.depth1, pair.pose1), (pair.depth2, pair.pose2)
    return overlap.both_ways(
        *(
            overlap.destinations_of(*truth.warp_pixels(*first, *second, camera.intrinsics, RADIUS), patch_size)
            for first, second in ((one, two), (two, one))
        )
    )


def _pose(eye: np.ndarray, yaw: float, pitch: float, stage: Stage, rng: np.random.Generator) -> np.ndarray:
    noise = np.radians(rng.uniform(-1, 1, 3) * NOISE)
    return cameras.poses(eye[None], np.array([yaw]) + noise[0], np.array([pitch]) + noise[1], noise[2:], stage.axes)[0]
