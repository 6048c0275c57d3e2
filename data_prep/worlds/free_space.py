"""Where somebody could stand in a world: a floor under, headroom above, clear around. Found by casting rays."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from data_prep.worlds.glb import World
from data_prep.worlds.rays import sphere_directions
from mimic_jax.command import InputError

# Nothing comes nearer to the camera than CLEARANCE. Rays leave a few centimetres between them, hence the margin.
CLEARANCE = 0.3
MARGIN = 0.08
# Eye height above the floor, metres.
LOWEST, HIGHEST = 1.2, 1.8
# Distance between places tried, metres; wider in large worlds, so that about MOST_PLACES are tried.
STEP = 0.2
# Floors whose heights differ by less than this are one floor, metres: rugs and sills, but not stairs or stools.
STAIR = 0.1
MOST_PLACES = 40_000

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

    @property
    def radius(self) -> float:
        """Metres from the middle of the places to the farthest."""
        return float(np.linalg.norm(self.points - self.points.mean(axis=0), axis=1).max())


def find_free_space(world: World, height: float, up: str = "y") -> FreeSpace:
    """The largest connected set of places with the eyes `height` metres above a floor. up: "y" or "z".

    A place has a level floor at that distance straight below, walls around it, and nothing within CLEARANCE.

    Raises InputError where there is none.
    """
    return find_islands(world, height, up)[0]


def find_islands(world: World, height: float, up: str = "y", clearance: float = CLEARANCE) -> list[FreeSpace]:
    """Every connected set of places, the one with most places first. Arguments as for find_free_space.

    clearance: metres to every side of the eyes. It decides which doors join two rooms.

    Raises InputError where there is no place.
    """
    axes = level_axes(up)
    points, step = _standing_places(world, axes, height)
    if len(points):
        points = points[is_clear(world, points, clearance)]
        points = points[_is_walled(world, points, axes)]
    if len(points) == 0:
        size = " × ".join(f"{side:.1f}" for side in world.high - world.low)
        raise InputError(
            f"no free place: nowhere in this scene ({size} m) is there a level floor with {height:.1f} m of free "
            f"height, walls around it and {clearance} m to every side; is its unit metres, and does {up} point up?"
        )
    label = _islands(world, points, axes, step)
    order = np.argsort(-np.bincount(label), kind="stable")
    return [FreeSpace(points[label == island], axes, height) for island in order]


def level_axes(up: str) -> Float64[np.ndarray, "3 3"]:
    """Rows: two level directions and the one that points up, right-handed. up: "y" or "z"."""
    vertical = _UPS[up]
    return np.stack([np.roll(vertical, 1), np.roll(vertical, 2), vertical])


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


def is_clear(
    world: World, points: Float[np.ndarray, "points 3"], clearance: float = CLEARANCE
) -> Bool[np.ndarray, " points"]:
    """Whether nothing comes nearer than `clearance` metres."""
    return clear_distance(world, points) > clearance + MARGIN


def floor_distance(
    world: World, eyes: Float[np.ndarray, "eyes 3"], axes: Float[np.ndarray, "3 3"]
) -> Float32[np.ndarray, " eyes"]:
    """Metres to the first thing straight below; infinite where there is nothing."""
    hits = world.rays.first_hits(eyes, np.broadcast_to(-axes[2], eyes.shape))
    return np.where(hits.triangle >= 0, hits.distance, np.float32(np.inf))


def stands(
    world: World, eyes: Float[np.ndarray, "eyes 3"], axes: Float[np.ndarray, "3 3"], height: float
) -> Bool[np.ndarray, " eyes"]:
    """Whether the first thing straight below is `height` metres away, give or take STAIR."""
    return np.abs(floor_distance(world, eyes, axes) - height) < STAIR


def _standing_places(world: World, axes: np.ndarray, height: float) -> tuple[Float64[np.ndarray, "places 3"], float]:
    """Eye positions above every level surface, on every storey, found by dropping rays; and the step between them."""
    vertical = axes[2]
    low, high = np.sort(np.stack([axes @ world.low, axes @ world.high]), axis=0)
    sides = high[:2] - low[:2]
    step = max(STEP, np.sqrt(np.prod(sides) / MOST_PLACES), sides.max() / MOST_PLACES)
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
        places.append(eyes[stands(world, eyes, axes, height)])
        start = start - 0.01
    return (np.concatenate(places) if places else np.zeros((0, 3))), float(step)


def _is_walled(world: World, points: np.ndarray, axes: np.ndarray) -> Bool[np.ndarray, " points"]:
    """Whether rays level to 30° up mostly meet something: so in rooms and courts, not on roofs or outside walls."""
    rise = _FEELERS @ axes[2]
    ahead = _FEELERS[(rise > 0) & (rise < 0.5)]
    hits = world.rays.first_hits(np.repeat(points, len(ahead), axis=0), np.tile(ahead, (len(points), 1)))
    return (hits.triangle >= 0).reshape(len(points), -1).mean(axis=1) > 0.7


def _islands(world: World, points: np.ndarray, axes: np.ndarray, step: float) -> np.ndarray:
    """The island each point is of: joined are neighbours on the grid, of about one height, in sight of each other."""
    one, two = cKDTree(points).query_pairs(1.5 * step, output_type="ndarray").T
    toward = points[two] - points[one]
    level = np.abs(toward @ axes[2]) < STAIR
    one, two, toward = one[level], two[level], toward[level]
    seen = ~world.rays.blocked(points[one], toward, np.ones(len(one)))
    one, two = one[seen], two[seen]
    links = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(points),) * 2)
    return connected_components(links, directed=False)[1]
