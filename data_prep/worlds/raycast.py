"""Pictures of a world, and the exact geometry behind every pixel."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8, UInt16

from data_prep.worlds import texels
from data_prep.worlds.glb import World
from data_prep.worlds.rays import Hits

# What is seen where a ray meets nothing.
SKY = (168, 184, 200)


@dataclasses.dataclass(frozen=True)
class View:
    """image: RGB. depth: metres along the optical axis, 0 where nothing is seen.
    normal: unit, camera axes, facing the camera; 0 where nothing is seen. instance: object id, 0 where nothing is seen.
    Geometry is that of the ray through the middle of each pixel.
    """

    image: UInt8[np.ndarray, "height width 3"]
    depth: Float32[np.ndarray, "height width"]
    normal: Float32[np.ndarray, "height width 3"]
    instance: UInt16[np.ndarray, "height width"]


def pinhole(size: int, field_of_view: float | int = 60.0) -> Float64[np.ndarray, "3 3"]:
    """Intrinsics of a square picture; field of view in degrees, edge to edge.

    The middle of the top left pixel is (0, 0), as in OpenCV, so the principal point is (size − 1) / 2.
    """
    focal = size / 2 / np.tan(np.radians(field_of_view) / 2)
    centre = (size - 1) / 2
    return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])


def render(
    world: World, camera_to_world: Float64[np.ndarray, "4 4"], intrinsics: Float64[np.ndarray, "3 3"], size: int
) -> View:
    """One picture of size × size. camera_to_world: OpenCV axes (x right, y down, z forward), metres.

    Texture is filtered by mip levels; pixels where two surfaces meet are averaged over four rays.
    """
    row, column = np.indices((size, size), np.float32).reshape(2, -1)
    directions = _directions(camera_to_world, intrinsics, column, row)
    hits = _cast(world, camera_to_world, directions)
    image = _shade(world, hits, directions, intrinsics[0, 0])
    normal, instance = _surface(world, hits, directions, camera_to_world)
    depth = hits.distance.reshape(size, size)
    normal, instance = normal.reshape(size, size, 3), instance.reshape(size, size)

    edge = np.flatnonzero(_edges(depth, normal, instance))
    if len(edge):
        total = np.zeros((len(edge), 3), np.float32)
        for down, right in ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)):
            rays = _directions(camera_to_world, intrinsics, column[edge] + right, row[edge] + down)
            total += _shade(world, _cast(world, camera_to_world, rays), rays, 2 * intrinsics[0, 0])
        image[edge] = total / 4
    image = np.clip(image + 0.5, 0, 255).astype(np.uint8).reshape(size, size, 3)
    return View(image=image, depth=depth, normal=normal, instance=instance)


def _directions(
    camera_to_world: np.ndarray, intrinsics: np.ndarray, x: Float[np.ndarray, " rays"], y: Float[np.ndarray, " rays"]
) -> Float32[np.ndarray, "rays 3"]:
    """World directions, one metre long along the optical axis, so that distances along them are depths."""
    across = (x - intrinsics[0, 2]) / intrinsics[0, 0]
    down = (y - intrinsics[1, 2]) / intrinsics[1, 1]
    right, below, forward = camera_to_world[:3, :3].T
    return (across[:, None] * right + down[:, None] * below + forward).astype(np.float32)


def _cast(world: World, camera_to_world: np.ndarray, directions: np.ndarray) -> Hits:
    origin = np.broadcast_to(camera_to_world[:3, 3].astype(np.float32), directions.shape)
    return world.rays.first_hits(origin, directions)


def _shade(world: World, hits: Hits, directions: np.ndarray, focal: float) -> Float32[np.ndarray, "rays 3"]:
    """Display-coded RGB 0–255. focal: pixels per unit of tangent, which sets the blur."""
    seen = hits.triangle >= 0
    triangle = hits.triangle if seen.all() else hits.triangle[seen]
    directions = directions if seen.all() else directions[seen]
    u, v, depth = (part if seen.all() else part[seen] for part in (hits.u, hits.v, hits.distance))
    weights = np.stack([1 - u - v, u, v], axis=1)
    uv = np.einsum("rc,rck->rk", weights, world.uv[triangle])
    # A pixel covers depth / focal metres across, and 1 / cosine times that along the slope: the geometric mean of both.
    length = np.sqrt(np.einsum("rk,rk->r", directions, directions))
    cosine = np.abs(np.einsum("rk,rk->r", directions, world.normal[triangle])) / length
    footprint = depth * world.density[triangle] / np.float32(focal) / np.sqrt(np.maximum(cosine, 0.05))
    level = np.log2(np.maximum(footprint, 1)).astype(np.float32)
    colour = texels.sample(world.images, world.texture[triangle], uv[:, 0], uv[:, 1], level)
    tint = world.tint[triangle]
    if (tint != 1).any():
        colour *= np.einsum("rc,rck->rk", weights, tint)
    if seen.all():
        return colour
    image = np.full((len(seen), 3), SKY, np.float32)
    image[seen] = colour
    return image


def _surface(world: World, hits: Hits, directions: np.ndarray, camera_to_world: np.ndarray):
    """Unit normals in camera axes, turned to the camera, and instance ids; 0 where nothing was met."""
    seen = hits.triangle >= 0
    normal = world.normal[hits.triangle]
    away = np.einsum("rk,rk->r", normal, directions) > 0
    normal = np.where(away[:, None], -normal, normal) @ camera_to_world[:3, :3].astype(np.float32)
    instance = np.where(seen, world.instance[hits.triangle], 0).astype(np.uint16)
    return np.where(seen[:, None], normal, 0).astype(np.float32), instance


def _edges(depth: np.ndarray, normal: np.ndarray, instance: np.ndarray) -> Bool[np.ndarray, "height width"]:
    """Pixels beside a step from one surface to another."""
    edge = np.zeros(depth.shape, bool)
    for one, other in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        near, far = np.minimum(depth[one], depth[other]), np.maximum(depth[one], depth[other])
        bent = np.einsum("yxk,yxk->yx", normal[one], normal[other]) < 0.8
        step = (instance[one] != instance[other]) | bent | (far > 1.15 * near)
        edge[one] |= step
        edge[other] |= step
    return edge
