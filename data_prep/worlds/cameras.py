"""Where cameras stand and which way they look."""

import numpy as np
from jaxtyping import Float, Float64


def poses(
    position: Float[np.ndarray, "views 3"],
    yaw: Float[np.ndarray, " views"],
    pitch: Float[np.ndarray, " views"],
    roll: Float[np.ndarray, " views"],
    axes: Float[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "views 4 4"]:
    """Camera-to-world matrices, OpenCV axes (x right, y down, z forward), metres.

    yaw: radians from the first level direction towards the second. pitch: radians above the level. roll: radians
    clockwise about the gaze. axes: rows are two level directions and up, right-handed.
    """
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], axis=1)
    level_right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=1)
    level_down = np.cross(forward, level_right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    right, down = c * level_right + s * level_down, c * level_down - s * level_right
    result = np.tile(np.eye(4), (len(position), 1, 1))
    # The level axes are right-handed, so the rotation is one too.
    result[:, :3, :3] = np.einsum("lk,flc->fkc", axes, np.stack([right, down, forward], axis=2))
    result[:, :3, 3] = position
    return result


def toward(
    position: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], axes: Float[np.ndarray, "3 3"]
) -> tuple[float, float]:
    """The yaw and pitch (radians) of the gaze from `position` to `target`; as in `poses`."""
    ahead, aside, above = axes @ (target - position)
    return float(np.arctan2(aside, ahead)), float(np.arctan2(above, np.hypot(ahead, aside)))
