"""Light on surfaces, worked out once per room: ceiling panels with soft shadows, and ambient light dimmed in corners.

All surfaces are matt, so the light on a point does not depend on where it is seen from and can be baked into textures.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from data_prep.worlds.rays import Rays
from data_prep.worlds.shapes import Chart

# Distance between the points at which light is worked out, metres; between them it is interpolated.
SPACING = 0.09
PANEL_SAMPLES = 9
AMBIENT_SAMPLES = 20
# Surfaces farther away than this do not dim the ambient light, metres.
AMBIENT_REACH = 1.2
# Points are lifted off their surface by this, so that it does not shade itself, metres.
LIFT = 0.004


@dataclasses.dataclass(frozen=True)
class Panel:
    """A lit rectangle facing down. centre: its middle; size: along x and y, metres; power: RGB."""

    centre: tuple[float, float, float]
    size: tuple[float, float]
    power: tuple[float, float, float]


def bake(
    charts: list[Chart], rays: Rays, panels: list[Panel], ambient: tuple[float, float, float], rng: np.random.Generator
) -> list[Float32[np.ndarray, "_ _ 3"]]:
    """RGB light, linear, on a coarse lattice over each chart, to be stretched over its texture."""
    lattices = [_lattice(chart) for chart in charts]
    points = np.concatenate([points.reshape(-1, 3) for points, _ in lattices])
    normals = np.concatenate([normals.reshape(-1, 3) for _, normals in lattices])
    points = points + LIFT * normals
    light = _ambient(points, normals, rays, rng)[:, None] * np.array(ambient, np.float32)
    for panel in panels:
        light += _direct(points, normals, rays, panel, rng)
    shapes = [normals.shape for _, normals in lattices]
    ends = np.cumsum([rows * columns for rows, columns, _ in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(light, ends), shapes, strict=True)]


def _lattice(chart: Chart) -> tuple[np.ndarray, np.ndarray]:
    """Points and unit normals at the centres of evenly spread cells."""
    down, across = chart.extent
    rows, columns = max(2, round(down / SPACING)), max(2, round(across / SPACING))
    grid_rows, grid_columns = chart.points.shape[:2]
    y = ((np.arange(rows) + 0.5) / rows * (grid_rows - 1)).astype(np.float32)
    x = ((np.arange(columns) + 0.5) / columns * (grid_columns - 1)).astype(np.float32)
    map_x, map_y = np.meshgrid(x, y)
    # Normals from corner tangents; interpolating them hides the facets of round things.
    right = np.gradient(chart.points, axis=1)
    below = np.gradient(chart.points, axis=0)
    fields = np.concatenate([chart.points, np.cross(below, right)], axis=2)
    sampled = np.dstack(
        [cv2.remap(np.ascontiguousarray(fields[..., k]), map_x, map_y, cv2.INTER_LINEAR) for k in range(6)]
    )
    normals = sampled[..., 3:]
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    return sampled[..., :3], (normals / np.maximum(length, 1e-12)).astype(np.float32)


def _ambient(points: np.ndarray, normals: np.ndarray, rays: Rays, rng: np.random.Generator) -> np.ndarray:
    """The share of the half space above each point that is open, weighted by cosine."""
    open_share = np.zeros(len(points), np.float32)
    for _ in range(AMBIENT_SAMPLES):
        # Normal plus a random unit vector is distributed by the cosine.
        direction = rng.normal(size=points.shape).astype(np.float32)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        direction += normals * np.float32(1.001)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        met = rays.first_hits(points, direction).distance
        open_share += np.where(met > 0, np.minimum(met / AMBIENT_REACH, 1), 1).astype(np.float32)
    return open_share / np.float32(AMBIENT_SAMPLES)


def _direct(
    points: Float64[np.ndarray, "points 3"], normals: np.ndarray, rays: Rays, panel: Panel, rng: np.random.Generator
) -> np.ndarray:
    total = np.zeros(len(points), np.float32)
    side = int(np.sqrt(PANEL_SAMPLES))
    for cell in range(side * side):
        jitter = rng.random((len(points), 2))
        spot = ((np.array(divmod(cell, side)) + jitter) / side - 0.5) * panel.size
        target = np.column_stack([spot, np.zeros(len(points))]) + panel.centre
        toward = (target - points).astype(np.float32)
        distance2 = np.einsum("ij,ij->i", toward, toward)
        distance = np.sqrt(distance2)
        facing = np.einsum("ij,ij->i", toward, normals) / distance
        leaving = toward[:, 2] / distance
        lit = (facing > 0) & (leaving > 0)
        # 0.99: the panel itself does not stand in the way.
        lit[lit] = ~rays.blocked(points[lit], toward[lit], np.full(lit.sum(), 0.99, np.float32))
        total += np.where(lit, facing * leaving / distance2, 0)
    return total[:, None] / np.float32(side * side) * np.array(panel.power, np.float32)
