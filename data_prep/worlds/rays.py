"""Triangles and the rays cast against them (Embree): the one place that talks to embreex."""

import dataclasses

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Float32, Int32


@dataclasses.dataclass(frozen=True)
class Hits:
    """The first triangle each ray meets.

    triangle: its index, −1 where the ray meets nothing.
    distance: along the ray, in lengths of its direction vector; 0 where it meets nothing.
    u, v: the hit is (1 − u − v)·corner0 + u·corner1 + v·corner2.
    """

    triangle: Int32[np.ndarray, " rays"]
    distance: Float32[np.ndarray, " rays"]
    u: Float32[np.ndarray, " rays"]
    v: Float32[np.ndarray, " rays"]


class Rays:
    """Casts rays against a fixed set of triangles; both sides of a triangle stop a ray."""

    def __init__(self, triangles: Float[np.ndarray, "triangles 3 3"]):
        # robust: rays do not slip through the edge that two triangles share.
        self._scene = EmbreeScene(robust=True)
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(triangles, np.float32))

    def first_hits(self, origins: Float[np.ndarray, "rays 3"], directions: Float[np.ndarray, "rays 3"]) -> Hits:
        """origins in metres; directions of any length but zero."""
        found = self._scene.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), output=True
        )
        triangle = found["primID"]
        distance = np.where(triangle >= 0, found["tfar"], np.float32(0))
        return Hits(triangle=triangle, distance=distance, u=found["u"], v=found["v"])

    def blocked(
        self,
        origins: Float[np.ndarray, "rays 3"],
        directions: Float[np.ndarray, "rays 3"],
        distance: Float[np.ndarray, " rays"],
    ) -> Bool[np.ndarray, " rays"]:
        """Whether anything is met within `distance` lengths of the direction vector."""
        found = self._scene.run(
            np.ascontiguousarray(origins, np.float32),
            np.ascontiguousarray(directions, np.float32),
            np.array(distance, np.float32),
            query="OCCLUDED",
        )
        return found != -1


def sphere_directions(count: int) -> Float32[np.ndarray, "count 3"]:
    """Unit vectors spread evenly over the sphere (Fibonacci lattice)."""
    steps = np.arange(count)
    z = 1 - (2 * steps + 1) / count
    angle = steps * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1).astype(np.float32)
