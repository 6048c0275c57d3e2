"""Where a hand-held camera goes: smooth paths through free space, looking around.

Works on any world: free places are found by casting rays, from no more than which way is up.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64

from data_prep.worlds.glb import World
from data_prep.worlds.rays import sphere_directions
from mimic_jax.command import InputError

# Nothing comes nearer to the camera than CLEARANCE. Rays leave a few centimetres between them, hence the margin.
CLEARANCE = 0.3
MARGIN = 0.08
# Eye height above the floor, metres.
LOWEST, HIGHEST = 1.2, 1.8
# Distance between places tried, metres; wider in large worlds, so that no more than MOST_PLACES are tried.
STEP = 0.2
# Floors whose heights differ by less than this are one floor, metres: rugs and sills, but not stairs or stools.
STAIR = 0.1
MOST_PLACES = 40_000
# Seconds from one control point of the path to the next, and how far apart they are, metres.
KNOT = 0.8
STRIDE = (0.25, 0.55)
# Turn of the gaze from one knot to the next, degrees.
TURN = (14.0, 30.0)
# The distance, metres, at which things are looked at by preference.
GAZE_DISTANCE = 2.8

_FEELERS = sphere_directions(400)
_UPS = {"y": np.array([0.0, 1, 0]), "z": np.array([0.0, 0, 1])}


@dataclasses.dataclass(frozen=True)
class FreeSpace:
    """Places where a person of one eye height could stand and walk from any one to any other.

    points: eye positions, metres, axes of the world. axes: rows are two level directions and up. height: eye height.
    """

    points: Float64[np.ndarray, "places 3"]
    axes: Float64[np.ndarray, "3 3"]
    height: float


def find_free_space(world: World, height: float, up: str = "y") -> FreeSpace:
    """The largest connected set of places with the eyes `height` metres above a floor. up: "y" or "z".

    A place has a level floor at that distance straight below, walls around it, and nothing within CLEARANCE.

    Raises InputError where there is none.
    """
    vertical = _UPS[up]
    axes = np.stack([np.roll(vertical, 1), np.roll(vertical, 2), vertical])
    points, step = _standing_places(world, axes, height)
    if len(points):
        points = points[_is_clear(world, points) & _is_walled(world, points, axes)]
    if len(points) == 0:
        size = " × ".join(f"{side:.1f}" for side in world.high - world.low)
        raise InputError(
            f"no free place: nowhere in this scene ({size} m) is there a level floor with {height:.1f} m of free "
            f"height, walls around it and {CLEARANCE} m to every side; is its unit metres, and does {up} point up?"
        )
    return FreeSpace(_largest_island(world, points, axes, step), axes, height)


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
        attempts = [control for control in attempts if _is_clear(world, _bspline(control, times)).all()]
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
    return _poses(position, yaw + shake[:, 0], pitch + shake[:, 1], shake[:, 2], free.axes)


def clear_distance(world: World, points: Float[np.ndarray, "points 3"]) -> Float64[np.ndarray, " points"]:
    """Metres from each point to the nearest surface that its feelers, 400 rays, meet; infinite where none meets any."""
    nearest = np.full(len(points), np.inf)
    block = 4096
    for first in range(0, len(points), block):
        part = points[first : first + block]
        origins = np.repeat(part, len(_FEELERS), axis=0)
        hits = world.rays.first_hits(origins, np.tile(_FEELERS, (len(part), 1)))
        distance = np.where(hits.triangle >= 0, hits.distance, np.inf).reshape(len(part), -1)
        nearest[first : first + block] = distance.min(axis=1)
    return nearest


def _standing_places(world: World, axes: np.ndarray, height: float) -> tuple[Float64[np.ndarray, "places 3"], float]:
    """Eye positions above every level surface, on every storey, found by dropping rays; and the step between them."""
    vertical = axes[2]
    low, high = np.sort(np.stack([axes @ world.low, axes @ world.high]), axis=0)
    step = max(STEP, np.sqrt(np.prod(high[:2] - low[:2]) / MOST_PLACES))
    # A little off the middle: rays down a shared edge of two triangles are a needless risk.
    first, second = (np.arange(low[k] + 0.53 * step, high[k], step) for k in (0, 1))
    level = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    start = np.full(len(level), high[2] + 0.1)
    places = []
    for _ in range(16):  # storeys, tables and roofs on the way down
        origins = np.column_stack([level, start]) @ axes
        hits = world.rays.first_hits(origins, np.broadcast_to(-vertical, origins.shape))
        met = hits.triangle >= 0
        level, start = level[met], start[met] - hits.distance[met]
        if len(level) == 0:
            break
        flat = np.abs(world.normal[hits.triangle[met]] @ vertical) > 0.9
        eyes = np.column_stack([level, start + height])[flat] @ axes
        places.append(eyes[_stands(world, eyes, axes, height)])
        start = start - 0.01
    return (np.concatenate(places) if places else np.zeros((0, 3))), float(step)


def _stands(world: World, eyes: np.ndarray, axes: np.ndarray, height: float) -> Bool[np.ndarray, " eyes"]:
    """Whether the first thing straight below is a floor `height` away, give or take STAIR."""
    hits = world.rays.first_hits(eyes, np.broadcast_to(-axes[2], eyes.shape))
    return (hits.triangle >= 0) & (np.abs(hits.distance - height) < STAIR)


def _is_clear(world: World, points: np.ndarray) -> Bool[np.ndarray, " points"]:
    return clear_distance(world, points) > CLEARANCE + MARGIN


def _is_walled(world: World, points: np.ndarray, axes: np.ndarray) -> Bool[np.ndarray, " points"]:
    """Whether rays level to 30° up mostly meet something: so in rooms and courts, not on roofs or outside walls."""
    rise = _FEELERS @ axes[2]
    ahead = _FEELERS[(rise > 0) & (rise < 0.5)]
    hits = world.rays.first_hits(np.repeat(points, len(ahead), axis=0), np.tile(ahead, (len(points), 1)))
    return (hits.triangle >= 0).reshape(len(points), -1).mean(axis=1) > 0.7


def _largest_island(world: World, points: np.ndarray, axes: np.ndarray, step: float) -> np.ndarray:
    """Points joined when neighbours on the grid, of about one height, and in sight of each other; the largest group."""
    label = np.arange(len(points))
    cells: dict[tuple, list[int]] = {}
    keys = np.floor(points / (1.5 * step)).astype(int)
    for number, key in enumerate(map(tuple, keys)):
        cells.setdefault(key, []).append(number)
    around = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3)
    pairs = [
        (number, other)
        for number, key in enumerate(keys)
        for offset in around
        for other in cells.get(tuple(key + offset), ())
        if number < other
    ]
    if pairs:
        one, two = np.array(pairs).T
        toward = points[two] - points[one]
        near = (np.linalg.norm(toward, axis=1) < 1.5 * step) & (np.abs(toward @ axes[2]) < STAIR)
        one, two, toward = one[near], two[near], toward[near]
        seen = ~world.rays.blocked(points[one], toward, np.ones(len(one)))
        one, two = one[seen], two[seen]
        while True:  # every point takes the smallest label within reach
            smallest = label.copy()
            np.minimum.at(smallest, one, label[two])
            np.minimum.at(smallest, two, label[one])
            smallest = smallest[smallest]
            if (smallest == label).all():
                break
            label = smallest
    return points[label == np.bincount(label).argmax()]


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
            if length == 0 or (_is_clear(world, segment) & _stands(world, segment, free.axes, bob[0])).all():
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


def _poses(position, yaw, pitch, roll, axes: np.ndarray) -> Float64[np.ndarray, "frames 4 4"]:
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], axis=1)
    level_right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=1)
    level_down = np.cross(forward, level_right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    right, down = c * level_right + s * level_down, c * level_down - s * level_right
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    # The level axes are right-handed, so the rotation is one too.
    poses[:, :3, :3] = np.stack([right, down, forward], axis=2)
    poses[:, :3, :3] = np.einsum("lk,flc->fkc", axes, poses[:, :3, :3])
    poses[:, :3, 3] = position
    return poses
