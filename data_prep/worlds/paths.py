"""Where a hand-held camera goes: smooth paths through the free space of any world, looking around."""

import numpy as np
from jaxtyping import Float64

from data_prep.worlds import cameras
from data_prep.worlds.free_space import CLEARANCE, FreeSpace, is_clear, stands
from data_prep.worlds.glb import World
from mimic_jax.command import InputError

# Seconds from one control point of the path to the next, and how far apart they are, metres.
KNOT = 0.8
STRIDE = (0.25, 0.55)
# Turn of the gaze from one knot to the next, degrees.
TURN = (14.0, 30.0)
# The distance, metres, at which things are looked at by preference.
GAZE_DISTANCE = 2.8


def plan_path(
    world: World, free: FreeSpace, frames: int, fps: float | int, rng: np.random.Generator
) -> Float64[np.ndarray, "frames 4 4"]:
    """Camera-to-world matrices (OpenCV axes, metres) of a walk through free space that looks around.

    Positions follow a cubic B-spline, which stays within the hull of each four control points in a row, so that only
    those need to be free. The gaze sweeps from side to side, along another.

    Raises InputError where no walk gets anywhere.
    """
    knots = int(np.ceil((frames - 1) / fps / KNOT)) + 4
    times = np.arange(frames) / fps
    for _ in range(5):
        attempts = [_walk(world, free, knots, rng) for _ in range(10)]
        # The walk was tried at a few points a segment; here at every frame.
        attempts = [control for control in attempts if is_clear(world, _bspline(control, times)).all()]
        views = [(_gaze(world, free, control, rng), control) for control in attempts]
        views = [view for view in views if np.ptp(view[1], axis=0).any()]
        if views:
            break
    else:
        raise InputError(
            f"the free space is too small to move in: from none of its {len(free.points)} places was there a walk that "
            f"keeps {CLEARANCE} m from everything; is the scene's unit metres?"
        )
    (yaw, pitch), control = max(views, key=lambda view: _interest(world, free, view[1], *view[0]))
    position = _bspline(control, times)
    yaw, pitch = _bspline(yaw[:, None], times)[:, 0], _bspline(pitch[:, None], times)[:, 0]
    # The unsteady hand: some millimetres, some tenths of a degree.
    position = position + _tremor(rng, times, 3) * 0.004 @ free.axes
    shake = _tremor(rng, times, 3) * np.radians((0.35, 0.35, 0.8))
    return cameras.poses(position, yaw + shake[:, 0], pitch + shake[:, 1], shake[:, 2], free.axes)


def _walk(world: World, free: FreeSpace, knots: int, rng: np.random.Generator) -> Float64[np.ndarray, "knots 3"]:
    """Control points: a wander with a heading, each segment of whose spline is clear of all surfaces."""
    start = free.points[rng.integers(len(free.points))]
    control = [start] * 3
    heading = rng.uniform(0, 2 * np.pi)
    bob = free.height + np.zeros(3)
    while len(control) < knots:
        reach = rng.uniform(*STRIDE)
        for attempt in range(24):
            # Each failure turns wider and steps shorter; standing still is always possible.
            turn = rng.normal(0, 0.5 + 0.25 * attempt)
            length = reach * (1 - attempt / 24) if attempt < 23 else 0.0
            step = length * np.array([np.cos(heading + turn), np.sin(heading + turn), 0.0])
            new = control[-1] + step @ free.axes
            segment = _bspline(np.array([*control[-3:], new]), np.linspace(0, KNOT, 6))
            if length == 0 or (is_clear(world, segment) & stands(world, segment, free.axes, bob[0])).all():
                break
        control.append(new)
        heading += turn
    return np.array(control)


def _gaze(world: World, free: FreeSpace, control: np.ndarray, rng: np.random.Generator):
    """Yaw and pitch (radians) at every control point: sweeps that turn back from dull or too near views."""
    yaw, pitch = [rng.uniform(0, 2 * np.pi)], []
    sense = rng.choice((-1, 1))
    for point in control:
        turns = sense * np.radians(rng.uniform(*TURN, 3))
        turns = np.append(turns, -turns[0])
        # Going back takes a clearly better view.
        worth = [_view_worth(world, free, point, yaw[-1] + turn) for turn in turns] - np.array([0, 0, 0, 0.4])
        best = int(np.argmax(worth))
        if best == 3:
            sense = -sense
        yaw.append(yaw[-1] + turns[best])
        pitch.append(-np.radians(rng.uniform(5, 19)))
    return np.array(yaw[1:]), np.array(pitch)


def _view_worth(world: World, free: FreeSpace, point: np.ndarray, yaw: float) -> float:
    """Higher for views of several things at about GAZE_DISTANCE; judged by 7 × 6 rays."""
    across, down = np.meshgrid(np.linspace(-0.45, 0.45, 7), np.linspace(-0.7, 0.2, 6))
    angle = yaw + across.ravel()
    directions = np.stack([np.cos(angle), np.sin(angle), down.ravel()], axis=1) @ free.axes
    hits = world.rays.first_hits(np.broadcast_to(point, directions.shape), directions)
    met = hits.triangle >= 0
    if not met.any():
        return -10.0
    away = np.median(np.where(met, np.maximum(hits.distance, 0.01), 20))
    things = len(np.unique(world.instance[hits.triangle[met]]))
    return float(0.15 * min(things, 10) - abs(np.log(away / GAZE_DISTANCE)))


def _interest(world: World, free: FreeSpace, control: np.ndarray, yaw: np.ndarray, pitch: np.ndarray) -> float:
    """Higher for walks that go somewhere and have worthy views on the way."""
    worth = [_view_worth(world, free, point, angle) for point, angle in zip(control, yaw, strict=True)]
    travelled = np.linalg.norm(np.diff(control, axis=0), axis=1).mean()
    return float(travelled / np.mean(STRIDE) + 1.5 * np.mean(worth))


def _bspline(control: Float64[np.ndarray, "knots values"], times: Float64[np.ndarray, " times"]) -> np.ndarray:
    """Uniform cubic B-spline, KNOT seconds a segment, starting at the first segment."""
    segment = np.clip((times / KNOT).astype(int), 0, len(control) - 4)
    t = (times / KNOT - segment)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return sum(weight * control[segment + k] for k, weight in enumerate(weights)) / 6


def _tremor(rng: np.random.Generator, times: np.ndarray, channels: int) -> np.ndarray:
    """Sums of slow waves, of unit size or less."""
    frequency = rng.uniform(0.4, 2.2, (5, channels))
    phase = rng.uniform(0, 2 * np.pi, (5, channels))
    return np.sin(2 * np.pi * frequency * times[:, None, None] + phase).mean(axis=1)
