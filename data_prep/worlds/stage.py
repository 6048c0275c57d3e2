"""A .glb to stand in, walk through and look around in: what the recipes for pairs need of a renderer."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from data_prep.worlds import glb, raycast
from data_prep.worlds.free_space import MARGIN, STAIR, STEP, FreeSpace, find_islands, floor_distance, is_clear
from data_prep.worlds.glb import World

# Metres to every side of the camera. That of habitat-sim's agent: narrow enough for doors to join rooms.
CLEARANCE = 0.1
# Islands of a smaller radius are not stood on, metres.
LEAST_RADIUS = 6.0

Rendered = tuple[UInt8[np.ndarray, "size size 3"], Float32[np.ndarray, "size size"]]


@dataclasses.dataclass(frozen=True)
class Camera:
    """A square pinhole camera: pixels a side, and the focal length in pixels."""

    size: int
    focal: float

    @property
    def intrinsics(self) -> Float64[np.ndarray, "3 3"]:
        """With the middle of the top left pixel at (0, 0)."""
        centre = (self.size - 1) / 2
        return np.array([[self.focal, 0, centre], [0, self.focal, centre], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class Stage:
    """A scene whose free space is found and that is filmed by casting rays.

    axes: rows are two level directions and up, in the axes of the file. islands: those that are stood on.
    """

    world: World
    islands: tuple[FreeSpace, ...]
    camera: Camera

    @property
    def axes(self) -> Float64[np.ndarray, "3 3"]:
        return self.islands[0].axes

    def place(self, rng: np.random.Generator) -> Float64[np.ndarray, "3"] | None:
        """A random place for the eyes, metres; every square metre of every island is as likely."""
        points = np.concatenate([island.points for island in self.islands])
        return self._beside(points[rng.integers(len(points))], rng.uniform(-STEP / 2, STEP / 2, 2))

    def step(
        self, eye: Float64[np.ndarray, "3"], direction: Float64[np.ndarray, "3"], length: float
    ) -> Float64[np.ndarray, "3"] | None:
        """`length` metres on in a level direction, with the eyes as high above the floor; None where the way there is
        not free."""
        # Half a clearance apart, so that nothing fits between.
        along = np.linspace(0, length, int(np.ceil(length / (CLEARANCE + MARGIN) * 2)) + 1)[1:]
        settled, free = self._settle(eye + along[:, None] * direction)
        return settled[-1] if free.all() else None

    def snap(self, start: Float64[np.ndarray, "3"], target: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
        """The place nearest to `target` on the island where `start` is."""
        island = min(self.islands, key=lambda island: np.linalg.norm(island.points - start, axis=1).min())
        nearest = island.points[np.linalg.norm(island.points - target, axis=1).argmin()]
        shift = (self.axes @ (target - nearest))[:2]
        return self._beside(nearest, np.clip(shift, -STEP / 2, STEP / 2))

    def render(self, pose: Float64[np.ndarray, "4 4"]) -> Rendered:
        """What is seen from a camera-to-world pose (OpenCV axes): RGB, and depth along the optical axis in metres, 0
        where nothing is seen."""
        view = raycast.render(self.world, pose, self.camera.intrinsics, self.camera.size)
        return view.image, view.depth

    def _beside(self, place: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """A place a little to the side of a grid's, where that is free too; so that views are not all from the grid."""
        settled, free = self._settle((place + shift @ self.axes[:2])[None])
        return settled[0] if free[0] else place

    def _settle(self, eyes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eyes set to their height above the floor right below, and whether there is one and all is clear around."""
        height = self.islands[0].height
        rise = height - floor_distance(self.world, eyes, self.axes)
        free = np.abs(rise) < STAIR
        settled = eyes + np.where(free, rise, 0)[:, None] * self.axes[2]
        return settled, free & is_clear(self.world, settled, CLEARANCE)


def open_stage(path: Path, height: float, up: str, camera: Camera) -> Stage:
    """Reads a .glb and finds where its floors can be stood on with the eyes `height` metres above. up: "y" or "z".

    Islands with a radius under 6 m are left out, as published; where none is as large, as in a single room, the one
    with most places is taken.

    Raises InputError where the file cannot be read or has no free place.
    """
    world = glb.read_world(path)
    islands = find_islands(world, height, up, CLEARANCE)
    large = [island for island in islands if island.radius >= LEAST_RADIUS]
    return Stage(world, tuple(large or islands[:1]), camera)
