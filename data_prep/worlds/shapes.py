"""Solid shapes as charts: rectangular pictures wrapped over grids of points. Metres, z up.

Seen from outside with row 0 of the grid on top, column 0 is on the left, so a texture painted on a chart reads
the right way round and the surface normal is (down × right).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

Number = float | int
Vector = Sequence[Number] | Float64[np.ndarray, "3"]


@dataclasses.dataclass(frozen=True)
class Chart:
    """points: the grid over which the picture is stretched evenly."""

    points: Float64[np.ndarray, "rows columns 3"]

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in metres: the longest column and the longest row."""
        down = np.linalg.norm(np.diff(self.points, axis=0), axis=2).sum(0).max()
        across = np.linalg.norm(np.diff(self.points, axis=1), axis=2).sum(1).max()
        return float(down), float(across)


def moved(charts: Sequence[Chart], offset: Vector = (0, 0, 0), yaw: Number = 0.0) -> list[Chart]:
    """Turns charts by `yaw` radians about the z axis, then shifts them."""
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return [Chart(chart.points @ turn.T + np.asarray(offset, float)) for chart in charts]


def inside_out(charts: Sequence[Chart]) -> list[Chart]:
    """The same surfaces seen from the other side (a room is a box inside out)."""
    return [Chart(chart.points[:, ::-1]) for chart in charts]


def box(width: Number, depth: Number, height: Number, at: Vector = (0, 0, 0)) -> list[Chart]:
    """A box of width × depth × height (x, y, z); `at` is the middle of its bottom. Order: front −y, right, back, left,
    top, bottom."""
    half = np.array([width, depth, height]) / 2
    middle = np.add(at, (0.0, 0.0, half[2]))
    up, away = np.array([0.0, 0, 1]), np.array([0.0, 1, 0])
    faces = [
        ((0, -1, 0), up),
        ((1, 0, 0), up),
        ((0, 1, 0), up),
        ((-1, 0, 0), up),
        ((0, 0, 1), away),
        ((0, 0, -1), away),
    ]
    charts = []
    for normal, top in faces:
        normal = np.array(normal, float)
        right = np.cross(top, normal)
        centre = middle + normal * half
        # Half an edge each.
        right, top = right * half, top * half
        rows, columns = np.array([1.0, -1])[:, None, None] * top, np.array([-1.0, 1])[:, None] * right
        charts.append(Chart(centre + rows + columns))
    return charts


def lathe(profile: Sequence[tuple[Number, Number]], segments: int = 28) -> Chart:
    """A surface of revolution about the z axis. profile: (radius, z), from the top down along the outside."""
    radius, z = np.array(profile, float).T
    # The last column repeats the first to the bit, so the seam is closed.
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    circle[-1] = circle[0]
    ring = radius[:, None, None] * circle
    return Chart(np.concatenate([ring, np.broadcast_to(z[:, None, None], (*ring.shape[:2], 1))], axis=2))


def disc(radius: Number, z: Number, facing: int, segments: int = 28) -> Chart:
    """A flat disc at height z facing up (+1) or down (−1), its rim on the corners of `lathe` with as many segments."""
    cells = segments // 4
    side = np.linspace(-1, 1, cells + 1)
    x, y = np.meshgrid(side * facing, side[::-1])
    # The concentric map of a square onto a disc; the corners of the square fall between the axes, hence the turn.
    ring = np.maximum(np.abs(x), np.abs(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        angle = np.where(
            np.abs(x) >= np.abs(y),
            np.where(x >= 0, 0.0, np.pi) + np.pi / 4 * (y / x),
            np.where(y >= 0, np.pi / 2, -np.pi / 2) - np.pi / 4 * (x / y),
        )
    angle = np.where(ring == 0, 0.0, angle) + np.pi / 4
    flat = ring * radius
    return Chart(np.stack([flat * np.cos(angle), flat * np.sin(angle), np.full_like(flat, z)], axis=2))


def cylinder(radius: Number, height: Number, at: Vector = (0, 0, 0), top_radius: Number | None = None) -> list[Chart]:
    """A cylinder, or with `top_radius` a cut cone, standing on `at`."""
    top = radius if top_radius is None else top_radius
    charts = [lathe([(top, height), (radius, 0)]), disc(top, height, 1), disc(radius, 0, -1)]
    return moved(charts, at)


def sphere(radius: Number, at: Vector = (0, 0, 0)) -> list[Chart]:
    """A ball resting on `at`: the six faces of a box blown up, so that no texture is pinched at a pole."""
    side = np.tan(np.linspace(-np.pi / 4, np.pi / 4, 9))
    charts = []
    for face in box(2, 2, 2, (0, 0, -1)):
        corner, right, down = face.points[0, 0], face.points[0, 1], face.points[1, 0]
        across = (right - corner) / 2
        along = (down - corner) / 2
        middle = corner + across + along
        cube = middle + side[None, :, None] * across + side[:, None, None] * along
        ball = radius * cube / np.linalg.norm(cube, axis=2, keepdims=True)
        charts.append(Chart(ball))
    return moved(charts, np.add(at, (0.0, 0.0, radius)))


def torus(ring: Number, tube: Number, at: Vector = (0, 0, 0)) -> list[Chart]:
    """A ring lying flat on `at`: `ring` to the middle of the tube, `tube` the tube's radius."""
    angle = np.linspace(np.pi / 2, -3 * np.pi / 2, 15)
    profile = np.stack([ring + tube * np.cos(angle), tube + tube * np.sin(angle)], axis=1)
    profile[-1] = profile[0]
    return moved([lathe([(float(r), float(z)) for r, z in profile])], at)


def bowl(radius: Number, height: Number, wall: Number, at: Vector = (0, 0, 0)) -> list[Chart]:
    """An open pot, widening upwards: a concave solid of revolution."""
    foot = radius * 0.7
    charts = [
        lathe([(radius, height), (radius, height * 0.6), (foot, 0)]),
        lathe([(radius - wall, height), (radius, height)]),
        lathe([(foot - wall, wall), (radius - wall, height * 0.6), (radius - wall, height)]),
        disc(foot - wall, wall, 1),
        disc(foot, 0, -1),
    ]
    return moved(charts, at)


def arch(width: Number, depth: Number, height: Number, thickness: Number, at: Vector = (0, 0, 0)) -> list[Chart]:
    """A free-standing arch, walked through along y: two posts under a half ring."""
    outer, inner = width / 2, width / 2 - thickness
    spring = height - outer
    angle = np.linspace(np.pi, 0, 21)

    def outline(radius: Number) -> np.ndarray:
        bow = np.stack([radius * np.cos(angle), spring + radius * np.sin(angle)], axis=1)
        return np.concatenate([[[-radius, 0]], bow, [[radius, 0]]])

    def sheet(top: np.ndarray, bottom: np.ndarray, top_y: Number, bottom_y: Number) -> Chart:
        rows = [np.insert(line, 1, y, axis=1) for line, y in ((top, top_y), (bottom, bottom_y))]
        return Chart(np.stack(rows))

    out, into = outline(outer), outline(inner)
    half = depth / 2
    charts = [
        sheet(out, into, -half, -half),
        sheet(out[::-1], into[::-1], half, half),
        sheet(out, out, half, -half),
        sheet(into, into, -half, half),
    ]
    for x in (-(outer + inner) / 2, (outer + inner) / 2):
        charts.append(box(thickness, depth, height, (x, 0, 0))[5])
    return moved(charts, at)
