"""Procedural textures rich in corners: what keypoint detectors need and blank walls lack.

Every painter fills (height, width) texels from its random numbers, a palette and the size of its motif in texels.
Repeated motifs differ from one another, so that a matcher can tell them apart.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Picture = Float32[np.ndarray, "height width 3"]
Palette = Float32[np.ndarray, "colours 3"]


@dataclasses.dataclass(frozen=True)
class Material:
    """A painter with the palette and motif size (metres) that all faces of one object share."""

    painter: Callable[[np.random.Generator, Palette, float, int, int], Picture]
    palette: Palette
    motif: float


# Degrees: brick, wood, sand, olive, leaf, teal, sky, navy, plum.
_HUES = (12, 28, 42, 62, 110, 175, 205, 228, 330)


def new_material(rng: np.random.Generator, kinds: str | None = None) -> Material:
    """Draws a material. kinds: names of painters to choose from, separated by spaces; all where None."""
    names = kinds.split() if kinds else list(PAINTERS)
    painter, smallest, largest = PAINTERS[names[rng.integers(len(names))]]
    return Material(painter, new_palette(rng), float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))))


def paint(
    material: Material, rng: np.random.Generator, height: int, width: int, texels_per_metre: float
) -> UInt8[np.ndarray, "height width 3"]:
    """One face of an object, RGB, unlit."""
    picture = material.painter(rng, material.palette, max(3.0, material.motif * texels_per_metre), height, width)
    return _worn(rng, picture)


def new_palette(rng: np.random.Generator, colours: int = 6) -> Palette:
    """Colours around one hue, from dark to light, one in four of another hue; mostly the muted ones of real rooms."""
    hues = rng.choice(_HUES, 2) + rng.normal(0, 8, 2)
    hue = (np.where(rng.uniform(size=colours) < 0.25, hues[1], hues[0]) + rng.normal(0, 9, colours)) % 360
    saturation = np.clip(rng.beta(1.5, 3) * 0.95 + rng.normal(0, 0.1, colours), 0.02, 0.85)
    value = rng.permutation(np.linspace(0.25, 0.98, colours)) + rng.normal(0, 0.04, colours)
    hsv = np.stack([hue, saturation, np.clip(value, 0.2, 1)], axis=1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] * np.float32(255)


def _noise(rng: np.random.Generator, height: int, width: int, cell_y: float, cell_x: float | None = None) -> np.ndarray:
    """Smooth noise in 0–1 whose blobs are about one cell large."""
    rows = int(np.ceil(height / cell_y)) + 2
    columns = int(np.ceil(width / (cell_x or cell_y))) + 2
    lattice = rng.random((rows, columns), dtype=np.float32)
    return np.clip(cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _fractal(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Noise with detail at every size from `cell` texels down to two; in 0–1."""
    total, weight, norm = np.zeros((height, width), np.float32), 1.0, 0.0
    while cell >= 2:
        total += np.float32(weight) * _noise(rng, height, width, cell)
        norm, weight, cell = norm + weight, weight * 0.65, cell / 2.2
    return total / np.float32(max(norm, 1e-6))


def _worn(rng: np.random.Generator, picture: Picture) -> UInt8[np.ndarray, "height width 3"]:
    """Stains and grain, which make equal motifs tell apart."""
    height, width = picture.shape[:2]
    stain = 0.82 + 0.36 * _fractal(rng, height, width, 40.0)
    grain = rng.integers(-9, 10, (height, width), dtype=np.int8).astype(np.float32)
    return np.clip(picture * stain[..., None] + grain[..., None], 0, 255).astype(np.uint8)


def _cells(rng: np.random.Generator, palette: Palette, ids: np.ndarray) -> Float32[np.ndarray, "*ids 3"]:
    """A colour for every cell number, each a little off its palette entry."""
    count = int(ids.max()) + 1
    colours = palette[rng.integers(len(palette), size=count)] * rng.uniform(0.75, 1.2, (count, 1)).astype(np.float32)
    return colours.astype(np.float32)[ids]


def _grid(height: int, width: int) -> Float32[np.ndarray, "2 height width"]:
    return np.mgrid[0:height, 0:width].astype(np.float32)


def _bricks(rng, palette, motif, height, width) -> Picture:
    y, x = _grid(height, width)
    tall, long = motif * 0.5, motif
    row = np.floor(y / tall)
    x = x + rng.uniform(0, long) + (row % 2) * long / 2
    column = np.floor(x / long)
    ids = (row * (column.max() + 1) + column).astype(np.int64)
    joint = max(1.0, motif * 0.06)
    mortar = (y % tall < joint) | (x % long < joint)
    picture = _cells(rng, palette[:3], ids) * (0.7 + 0.6 * _fractal(rng, height, width, motif / 3))[..., None]
    return np.where(mortar[..., None], palette[3], picture).astype(np.float32)


def _checks(rng, palette, motif, height, width) -> Picture:
    y, x = _grid(height, width)
    row, column = (y // motif).astype(np.int64), (x // motif).astype(np.int64)
    ids = row * (column.max() + 1) + column
    picture = np.where(
        ((row + column) % 2)[..., None] == 0, _cells(rng, palette[:2], ids), _cells(rng, palette[3:], ids)
    )
    # A spot of its own size and colour in most squares.
    cells = int(ids.max()) + 1
    size = rng.uniform(-0.1, 0.45, cells).astype(np.float32)[ids] * motif
    offset = rng.uniform(0.35, 0.65, (2, cells)).astype(np.float32)[:, ids] * motif
    spot = np.abs(y % motif - offset[0]) + np.abs(x % motif - offset[1]) < size
    return np.where(spot[..., None], _cells(rng, palette, ids), picture).astype(np.float32)


def _planks(rng, palette, motif, height, width) -> Picture:
    y, x = _grid(height, width)
    column = (x // motif).astype(np.int64)
    length = motif * 7
    y = y + rng.uniform(0, length, int(column.max()) + 1).astype(np.float32)[column]
    row = (y // length).astype(np.int64)
    ids = row * (column.max() + 1) + column
    streaks = _noise(rng, height, width, motif * 1.5, 2.5)
    rings = np.sin(22 * _noise(rng, height, width, motif * 3, motif / 2)) * 0.12
    picture = _cells(rng, palette[:3], ids) * (0.6 + 0.6 * streaks + rings)[..., None]
    gap = (x % motif < max(1.0, motif * 0.04)) | (y % length < max(1.5, motif * 0.06))
    picture = np.where(gap[..., None], picture * 0.35, picture).astype(np.float32)
    for _ in range(int(height * width / (motif * motif * 6))):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(max(1, motif * rng.uniform(0.05, 0.14))), int(max(1, motif * rng.uniform(0.08, 0.25))))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, (palette[0] * 0.3).tolist(), -1)
    return picture


def _terrazzo(rng, palette, motif, height, width) -> Picture:
    picture = np.full((height, width, 3), palette[0], np.float32)
    for _ in range(min(40_000, int(2.2 * height * width / (motif * motif)))):
        corners = int(rng.integers(3, 7))
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = motif * rng.uniform(0.2, 0.75)
        shape = rng.uniform(0, 1, 2) * (width, height) + reach * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        colour = palette[rng.integers(1, len(palette))] * rng.uniform(0.8, 1.15)
        cv2.fillConvexPoly(picture, shape.astype(np.int32), colour.tolist(), cv2.LINE_8)
    return picture


def _stripes(rng, palette, motif, height, width) -> Picture:
    position, edges = 0.0, []
    while position < width:
        position += motif * rng.uniform(0.15, 1.0)
        edges.append(position)
    stripe = np.searchsorted(edges, np.arange(width))
    picture = np.broadcast_to(_cells(rng, palette, stripe)[None], (height, width, 3)).copy()
    # Short bars across the stripes break their sameness along their length.
    for _ in range(int(1.5 * height * width / (motif * motif))):
        first = int(rng.integers(width))
        last = first + int(motif * rng.uniform(0.2, 1.6))
        y = int(rng.integers(height))
        colour = palette[rng.integers(len(palette))].tolist()
        cv2.rectangle(picture, (first, y), (last, y + int(motif * rng.uniform(0.08, 0.4))), colour, -1)
    return picture


def _glyphs(rng, palette, motif, height, width) -> Picture:
    """Lines of an invented script."""
    picture = np.full((height, width, 3), palette[np.argmax(palette.sum(1))], np.float32)
    line = motif * rng.uniform(0.8, 1.2)
    y = line * 0.3
    while y < height:
        x = rng.uniform(0, 2) * line
        ink = palette[rng.integers(len(palette))] * 0.45
        while x < width:
            _glyph(rng, picture, x, y, line * 0.62, ink)
            x += line * (0.62 if rng.uniform() < 0.85 else 1.2)
        y += line * 1.15
    return picture


def _glyph(rng: np.random.Generator, picture: Picture, x: float, y: float, size: float, ink: np.ndarray) -> None:
    """A few strokes between the points of a 3×4 lattice."""
    stops = np.stack([x + rng.integers(0, 3, 5) * size / 2.6, y + rng.integers(0, 4, 5) * size / 2.2], axis=1)
    cv2.polylines(picture, [stops.astype(np.int32)], False, ink.tolist(), max(1, round(size * 0.14)), cv2.LINE_AA)
    if rng.uniform() < 0.3:
        cv2.circle(picture, (int(x + size / 2), int(y + size)), max(1, int(size * 0.16)), ink.tolist(), -1)


def _camouflage(rng, palette, motif, height, width) -> Picture:
    field = _fractal(rng, height, width, motif)
    edges = np.quantile(field, np.linspace(0, 1, len(palette) + 1)[1:-1])
    return palette[np.searchsorted(edges, field)]


def _stones(rng, palette, motif, height, width) -> Picture:
    """Cells around random seeds, with dark joints."""
    away = np.full((height, width), 255, np.uint8)
    seeds = max(4, int(height * width / (motif * motif)))
    away[rng.integers(height, size=seeds), rng.integers(width, size=seeds)] = 0
    _, ids = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    picture = _cells(rng, palette[:4], ids) * (0.75 + 0.5 * _fractal(rng, height, width, motif / 2))[..., None]
    joint = cv2.morphologyEx(ids.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return np.where(joint[..., None], palette[5] * 0.4, picture).astype(np.float32)


def _confetti(rng, palette, motif, height, width) -> Picture:
    picture = np.full((height, width, 3), palette[1] * 0.9, np.float32)
    for _ in range(min(30_000, int(1.2 * height * width / (motif * motif)))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        reach = max(1, int(motif * rng.uniform(0.15, 0.55)))
        colour = palette[rng.integers(len(palette))].tolist()
        thickness = -1 if rng.uniform() < 0.6 else max(1, reach // 3)
        if rng.uniform() < 0.5:
            cv2.circle(picture, (x, y), reach, colour, thickness)
        else:
            cv2.rectangle(picture, (x, y), (x + reach, y + int(reach * rng.uniform(0.4, 2))), colour, thickness)
    return picture


def _mosaic(rng, palette, motif, height, width) -> Picture:
    y, x = _grid(height, width)
    row, column = (y // motif).astype(np.int64), (x // motif).astype(np.int64)
    picture = _cells(rng, palette, row * (column.max() + 1) + column)
    joint = (y % motif < 1) | (x % motif < 1)
    return np.where(joint[..., None], palette[0] * 0.5, picture).astype(np.float32)


def _chevrons(rng, palette, motif, height, width) -> Picture:
    y, x = _grid(height, width)
    fold = np.abs((x / motif) % 2 - 1)
    band = ((y / motif + fold) * 2.2).astype(np.int64)
    leg = (x / motif).astype(np.int64)
    return _cells(rng, palette, band * (leg.max() + 1) + leg)


def _poster(rng, palette, motif, height, width) -> Picture:
    """A picture to hang: a graded ground, large shapes, a block of script, a frame."""
    y, _ = _grid(height, width)
    ratio = (y / height)[..., None]
    picture = (palette[0] * (1 - ratio) + palette[1] * ratio).astype(np.float32)
    short = min(height, width)
    for _ in range(int(rng.integers(7, 16))):
        x, top = int(rng.integers(width)), int(rng.integers(height))
        reach = int(short * rng.uniform(0.05, 0.28))
        colour = palette[rng.integers(len(palette))].tolist()
        kind = rng.integers(3)
        if kind == 0:
            cv2.circle(picture, (x, top), reach, colour, -1 if rng.uniform() < 0.6 else max(2, reach // 4), cv2.LINE_AA)
        elif kind == 1:
            triangle = (rng.uniform(-1, 1, (3, 2)) * reach * 1.4 + (x, top)).astype(np.int32)
            cv2.fillConvexPoly(picture, triangle, colour, cv2.LINE_AA)
        else:
            cv2.rectangle(picture, (x - reach, top - reach // 2), (x + reach, top + reach // 2), colour, -1)
    ink = palette[np.argmin(palette.sum(1))] * 0.4
    line = short * rng.uniform(0.06, 0.1)
    first = rng.uniform(0.5, 0.75) * height
    for text_line in range(int(rng.integers(2, 5))):
        for x in np.arange(width * 0.1, width * rng.uniform(0.6, 0.9), line * 0.75):
            _glyph(rng, picture, x, first + text_line * line * 1.3, line * 0.7, ink)
    cv2.rectangle(picture, (0, 0), (width - 1, height - 1), (palette[-1] * 0.4).tolist(), max(2, round(short * 0.035)))
    return picture


# Each painter with the smallest and largest motif, in metres, at which it looks like what it is.
PAINTERS = {
    "bricks": (_bricks, 0.12, 0.3),
    "checks": (_checks, 0.07, 0.22),
    "planks": (_planks, 0.08, 0.16),
    "terrazzo": (_terrazzo, 0.05, 0.12),
    "stripes": (_stripes, 0.1, 0.25),
    "glyphs": (_glyphs, 0.06, 0.16),
    "camouflage": (_camouflage, 0.12, 0.4),
    "stones": (_stones, 0.08, 0.22),
    "confetti": (_confetti, 0.06, 0.16),
    "mosaic": (_mosaic, 0.05, 0.09),
    "chevrons": (_chevrons, 0.1, 0.25),
    "poster": (_poster, 1.0, 1.0),
}
