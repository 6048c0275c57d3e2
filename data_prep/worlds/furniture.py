"""The things that fill a room, each built of shapes. Metres, z up, standing on z = 0, front facing −y.

`extent` is the bounding width, depth and height. A part is some charts and the number of the material they wear.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_prep.worlds import shapes
from data_prep.worlds.shapes import Chart


@dataclasses.dataclass(frozen=True)
class Item:
    """An object of one instance id.

    extent: width (x), depth (y), height (z) of its bounding box, centred on the z axis.
    tabletop: height at which smaller things may stand on it, None where they may not.
    """

    name: str
    parts: tuple[tuple[list[Chart], int], ...]
    extent: tuple[float, float, float]
    tabletop: float | None = None


def crate(rng: np.random.Generator) -> Item:
    width, depth, height = rng.uniform((0.4, 0.4, 0.35), (0.9, 0.7, 0.8))
    return Item("crate", ((shapes.box(width, depth, height), 0),), (width, depth, height))


def cabinet(rng: np.random.Generator) -> Item:
    """A tall box on a plinth, with a panel for each door and a knob on each."""
    width, depth, height = rng.uniform((0.8, 0.4, 1.2), (1.3, 0.55, 2.1))
    body = shapes.box(width, depth - 0.04, height - 0.08, (0, 0.02, 0.08))
    plinth = shapes.box(width - 0.08, depth - 0.12, 0.08, (0, 0.02, 0))
    doors, knobs = [], []
    for side in (-1, 1):
        doors += shapes.box(width / 2 - 0.04, 0.02, height - 0.2, (side * width / 4, 0.03 - depth / 2, 0.14))
        knobs += shapes.box(0.03, 0.02, 0.12, (side * 0.05, 0.01 - depth / 2, height * 0.5))
    return Item("cabinet", ((body, 0), (doors, 1), (plinth + knobs, 2)), (width, depth, height))


def bookcase(rng: np.random.Generator) -> Item:
    """Open shelves, filled with books of many heights."""
    width, depth, height = rng.uniform((0.8, 0.28, 1.2), (1.4, 0.38, 2.1))
    board = 0.03
    shelves = int(rng.integers(3, 6))
    rise = (height - board) / shelves
    case = [chart for x in (-1, 1) for chart in shapes.box(board, depth, height, (x * (width - board) / 2, 0, 0))]
    case += shapes.box(width - 2 * board, 0.015, height, (0, (depth - 0.015) / 2, 0))
    books: list[list[Chart]] = [[], []]
    inner = width - 2 * board
    for shelf in range(shelves + 1):
        case += shapes.box(inner, depth - 0.015, board, (0, -0.0075, shelf * rise))
        if shelf == shelves:
            break
        x = -inner / 2 + 0.01
        while True:
            thick = rng.uniform(0.05, 0.14)
            if x + thick > inner / 2 - 0.01:
                break
            if rng.uniform() < 0.8:
                deep, tall = depth * rng.uniform(0.55, 0.8), (rise - board) * rng.uniform(0.55, 0.92)
                at = (x + thick / 2, (depth - 0.015) / 2 - deep / 2 - 0.0075, shelf * rise + board)
                books[int(rng.integers(2))] += shapes.box(thick, deep, tall, at)
            x += thick + 0.004
    return Item("bookcase", ((case, 0), (books[0], 1), (books[1], 2)), (width, depth, height))


def table(rng: np.random.Generator) -> Item:
    width, depth, height = rng.uniform((0.9, 0.6, 0.68), (1.6, 0.9, 0.8))
    top = shapes.box(width, depth, 0.05, (0, 0, height - 0.05))
    leg = rng.uniform(0.05, 0.08)
    legs = []
    for x in (-1, 1):
        for y in (-1, 1):
            at = (x * (width - leg - 0.04) / 2, y * (depth - leg - 0.04) / 2, 0)
            legs += shapes.box(leg, leg, height - 0.05, at)
    return Item("table", ((top, 0), (legs, 1)), (width, depth, height), tabletop=height)


def chair(rng: np.random.Generator) -> Item:
    side, seat, height = rng.uniform((0.42, 0.42, 0.85), (0.5, 0.48, 1.05))
    legs = []
    for x in (-1, 1):
        for y in (-1, 1):
            legs += shapes.box(0.045, 0.045, seat - 0.05, (x * (side - 0.05) / 2, y * (side - 0.05) / 2, 0))
    board = shapes.box(side, side, 0.05, (0, 0, seat - 0.05))
    back = shapes.box(side, 0.045, height - seat, (0, (side - 0.045) / 2, seat))
    return Item("chair", ((board + back, 0), (legs, 1)), (side, side, height))


def stool(rng: np.random.Generator) -> Item:
    radius, height = rng.uniform((0.2, 0.45), (0.28, 0.7))
    top = shapes.cylinder(radius, 0.06, (0, 0, height - 0.06))
    stem = shapes.cylinder(0.06, height - 0.1, (0, 0, 0.04))
    foot = shapes.cylinder(radius * 0.9, 0.04)
    return Item("stool", ((top, 0), (stem + foot, 1)), (2 * radius, 2 * radius, height), tabletop=height)


def drum(rng: np.random.Generator) -> Item:
    radius, height = rng.uniform((0.2, 0.5), (0.38, 1.0))
    return Item("drum", ((shapes.cylinder(radius, height), 0),), (2 * radius, 2 * radius, height))


def cone(rng: np.random.Generator) -> Item:
    radius, height = rng.uniform((0.22, 0.5), (0.35, 1.0))
    body = shapes.cylinder(radius, height, top_radius=radius * 0.12)
    return Item("cone", ((body, 0),), (2 * radius, 2 * radius, height))


def ball(rng: np.random.Generator) -> Item:
    radius = rng.uniform(0.2, 0.45)
    return Item("ball", ((shapes.sphere(radius), 0),), (2 * radius,) * 3)


def ring(rng: np.random.Generator) -> Item:
    """A torus lying flat."""
    tube = rng.uniform(0.09, 0.16)
    middle = rng.uniform(2.2, 3.2) * tube
    reach = 2 * (middle + tube)
    return Item("ring", ((shapes.torus(middle, tube), 0),), (reach, reach, 2 * tube))


def pot(rng: np.random.Generator) -> Item:
    """An open pot with a ball in it."""
    radius, height = rng.uniform((0.22, 0.3), (0.36, 0.6))
    wall = 0.03
    inside = shapes.sphere((radius - wall) * 0.62, (0, 0, wall))
    body = shapes.bowl(radius, height, wall)
    return Item("pot", ((body, 0), (inside, 1)), (2 * radius, 2 * radius, max(height, wall + 1.24 * (radius - wall))))


def open_box(rng: np.random.Generator) -> Item:
    """Five boards, open on top."""
    width, depth, height = rng.uniform((0.5, 0.4, 0.3), (0.9, 0.6, 0.55))
    board = 0.03
    boards = shapes.box(width, depth, board)
    for side in (-1, 1):
        boards += shapes.box(width, board, height - board, (0, side * (depth - board) / 2, board))
        boards += shapes.box(board, depth - 2 * board, height - board, (side * (width - board) / 2, 0, board))
    return Item("open_box", ((boards, 0),), (width, depth, height))


def steps(rng: np.random.Generator) -> Item:
    """Three steps, going up to the back."""
    width, tread, rise = rng.uniform((0.5, 0.22, 0.16), (0.8, 0.3, 0.24))
    blocks = []
    for step in range(3):
        blocks += shapes.box(width, tread, rise * (step + 1), (0, (step - 1) * tread, 0))
    return Item("steps", ((blocks, 0),), (width, 3 * tread, 3 * rise))


def arch(rng: np.random.Generator) -> Item:
    width, depth, height = rng.uniform((1.0, 0.25, 1.7), (1.4, 0.4, 2.1))
    charts = shapes.arch(width, depth, height, rng.uniform(0.16, 0.24))
    return Item("arch", ((charts[:2], 0), (charts[2:], 1)), (width, depth, height))


def tower(rng: np.random.Generator) -> Item:
    """Boxes stacked askew, the larger below the smaller."""
    side, parts, z = rng.uniform(0.45, 0.65), [], 0.0
    widest = side * np.sqrt(2)
    for level in range(int(rng.integers(2, 5))):
        height = rng.uniform(0.25, 0.4)
        block = shapes.moved(shapes.box(side, side, height), (0, 0, z), rng.uniform(0, np.pi / 2))
        parts.append((block, level % 3))
        z += height
        side *= 0.7
    return Item("tower", tuple(parts), (widest, widest, z))


def lamp(rng: np.random.Generator, drop: float) -> Item:
    """A ball on a rod, `drop` metres from ceiling to its lowest point."""
    radius = rng.uniform(0.12, 0.2)
    parts = (
        (shapes.sphere(radius), 0),
        (shapes.cylinder(0.015, drop - 2 * radius + 0.01, (0, 0, 2 * radius - 0.01)), 1),
    )
    return Item("lamp", parts, (2 * radius, 2 * radius, drop))


def slab(name: str, width: float, depth: float, height: float) -> Item:
    """A plain board: a rug, a picture, a wall shelf, a lit ceiling panel."""
    return Item(name, ((shapes.box(width, depth, height), 0),), (width, depth, height))


def trinket(rng: np.random.Generator) -> Item:
    """Something small enough for a table."""
    size = rng.uniform(0.09, 0.15)
    kind = int(rng.integers(4))
    if kind == 0:
        return Item(
            "small_box", ((shapes.box(2 * size, 1.4 * size, 1.8 * size), 0),), (2 * size, 1.4 * size, 1.8 * size)
        )
    if kind == 1:
        return Item("small_ball", ((shapes.sphere(size), 0),), (2 * size,) * 3)
    if kind == 2:
        return Item("can", ((shapes.cylinder(size * 0.7, size * 2.2), 0),), (1.4 * size, 1.4 * size, 2.2 * size))
    return Item("bowl", ((shapes.bowl(size, size, 0.015), 0),), (2 * size, 2 * size, size))


def choose(rng: np.random.Generator, kinds: Sequence, count: int) -> list[Item]:
    """`count` items, every kind once before any kind comes twice."""
    order = np.concatenate([rng.permutation(len(kinds)) for _ in range(-(-count // len(kinds)))])
    return [kinds[index](rng) for index in order[:count]]


AGAINST_A_WALL = (bookcase, cabinet, table, bookcase, crate, tower)
STANDING_FREE = (crate, table, chair, stool, drum, cone, ball, ring, pot, open_box, steps, arch, tower)
