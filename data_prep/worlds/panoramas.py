"""MIMIC's recipe for 3-D scenes (arXiv 2306.15128): three panoramas a step apart, A, B and C."""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_prep.worlds import cameras
from data_prep.worlds.stage import Camera, Stage

VIEWS = 8
PANORAMAS = 3
# Degrees by which the walker turns before each step, and the step's length, metres.
TURNS_TO_B = (60, 120, 240, 300)
TURNS_TO_C = (0, 60, 120, 240, 300)
STEPS = (0.5, 1.0)
# Degrees, before the crop. The recipe names none; this is habitat-sim's default.
FIELD_OF_VIEW = 90.0
# Variance of the Laplacian of the greyscale view; less is a blank wall.
LEAST_DETAIL = 1000.0
# Places tried until one has room for both steps.
_ATTEMPTS = 20


def camera(image_size: int) -> Camera:
    """The camera that sees what the recipe's crop leaves: 224 of 256 rendered pixels, whatever their number is."""
    rendered = image_size * 256 / 224
    return Camera(image_size, rendered / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2))


def plan(stage: Stage, rng: np.random.Generator) -> Float64[np.ndarray, "panoramas views 4 4"] | None:
    """Camera-to-world matrices of panoramas A, B and C; None where no place was found.

    The walker stands at a random place looking a random way (view 0 of A), turns by one of TURNS_TO_B and steps forward
    (view 0 of B looks that way), turns by one of TURNS_TO_C and steps again (C). Views go round by 45° to the left.
    A turn after which the way is not free is drawn again among those left; where all are blocked, so is the place.
    """
    for _ in range(_ATTEMPTS):
        place = stage.place(rng)
        if place is None:
            return None
        walked = [(place, float(rng.uniform(0, 2 * np.pi)))]
        for turns in (TURNS_TO_B, TURNS_TO_C):
            onward = _walk_on(stage, *walked[-1], turns, rng)
            if onward is None:
                break
            walked.append(onward)
        if len(walked) == PANORAMAS:
            return np.stack([_around(eye, heading, stage.axes) for eye, heading in walked])
    return None


def film(stage: Stage, rng: np.random.Generator) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """The 24 views of one sample: A's eight, B's, C's. None at all where no place was found."""
    poses = plan(stage, rng)
    if poses is not None:
        for pose in poses.reshape(-1, 4, 4):
            yield stage.render(pose)[0]


def is_blank(image: UInt8[np.ndarray, "height width 3"]) -> bool:
    """Whether an RGB view shows too little to be matched."""
    return bool(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() < LEAST_DETAIL)


def _walk_on(stage: Stage, eye: np.ndarray, heading: float, turns: tuple[int, ...], rng: np.random.Generator):
    """Where a turn and a step lead, and the heading there; None where no turn leaves room for it."""
    length = float(rng.uniform(*STEPS))
    for turn in rng.permutation(turns):
        onward = heading + np.radians(turn)
        reached = stage.step(eye, np.array([np.cos(onward), np.sin(onward), 0]) @ stage.axes, length)
        if reached is not None:
            return reached, float(onward)
    return None


def _around(eye: np.ndarray, heading: float, axes: np.ndarray) -> Float64[np.ndarray, "views 4 4"]:
    yaw = heading + np.arange(VIEWS) * 2 * np.pi / VIEWS
    level = np.zeros(VIEWS)
    return cameras.poses(np.broadcast_to(eye, (VIEWS, 3)), yaw, level, level, axes)
