"""Where things stand in a room: nothing floats, nothing runs into anything else."""

import dataclasses

import numpy as np

from data_prep.worlds import furniture, shapes
from data_prep.worlds.furniture import Item

# Gap kept between neighbours and to the walls, metres.
GAP = 0.04


@dataclasses.dataclass(frozen=True)
class Placed:
    """An item at `offset` (x, y, z of the middle of its bottom), turned by `yaw` radians."""

    item: Item
    offset: tuple[float, float, float]
    yaw: float

    @property
    def reach(self) -> tuple[float, float]:
        """Half the width (x) and depth (y) of the upright box around the turned item."""
        c, s = abs(np.cos(self.yaw)), abs(np.sin(self.yaw))
        width, depth, _ = self.item.extent
        return (c * width + s * depth) / 2, (s * width + c * depth) / 2

    @property
    def parts(self) -> list[tuple[list[shapes.Chart], int]]:
        """The item's charts where they stand in the room."""
        return [(shapes.moved(charts, self.offset, self.yaw), slot) for charts, slot in self.item.parts]


def furnish(rng: np.random.Generator, width: float, depth: float, height: float, ceiling: list[Placed]) -> list[Placed]:
    """Fills a room that spans ±width/2 × ±depth/2 × 0–height, leaving a place to walk about in.

    ceiling: what is on the ceiling already, which no lamp may touch.
    """
    # The clearing: nothing taller than a rug stands here.
    radius = min(width, depth) * rng.uniform(0.2, 0.25)
    centre = rng.uniform(-0.1, 0.1, 2) * (width, depth)
    rug = furniture.slab("rug", *(radius * rng.uniform(0.9, 1.35, 2)), 0.012)
    clearing = Placed(furniture.slab("clearing", 2 * radius, 2 * radius, height), (*centre, 0.0), 0.0)
    floor = [clearing]
    for item in furniture.choose(rng, furniture.AGAINST_A_WALL, int(rng.integers(8, 12))):
        _try_place(rng, floor, lambda item=item: _at_wall(rng, item, width, depth), width, depth)
    for item in furniture.choose(rng, furniture.STANDING_FREE, int(rng.integers(14, 20))):
        _try_place(rng, floor, lambda item=item: _anywhere(rng, item, width, depth), width, depth)
    standing = floor[1:]
    on_top = [small for host in standing for small in _on_top(rng, host)]
    hung = _hang(rng, standing, width, depth, height)
    lamps = _lamps(rng, standing, [clearing, *ceiling], width, depth, height)
    return [Placed(rug, (*centre, 0.0), 0.0), *standing, *on_top, *hung, *lamps]


def _try_place(rng, placed: list[Placed], propose, width: float, depth: float) -> None:
    """Appends the first of 60 proposals that fits; a room too full for the item does without it."""
    for _ in range(60):
        candidate = propose()
        x, y = candidate.reach
        if abs(candidate.offset[0]) + x + GAP > width / 2 or abs(candidate.offset[1]) + y + GAP > depth / 2:
            continue
        if not any(_collide(candidate, other) for other in placed):
            placed.append(candidate)
            return


def _collide(one: Placed, other: Placed) -> bool:
    gaps = np.abs(np.subtract(one.offset[:2], other.offset[:2])) - np.add(one.reach, other.reach)
    return bool((gaps < GAP).all())


def _at_wall(rng, item: Item, width: float, depth: float) -> Placed:
    """The item's back to one of the four walls."""
    wall = int(rng.integers(4))
    yaw = wall * np.pi / 2
    along, away = ((width, depth), (depth, width))[wall % 2]
    back = away / 2 - item.extent[1] / 2 - GAP - 0.005
    side = rng.uniform(-0.5, 0.5) * (along - item.extent[0])
    x, y = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]) @ (side, back)
    return Placed(item, (float(x), float(y), 0.0), yaw)


def _anywhere(rng, item: Item, width: float, depth: float) -> Placed:
    x, y = rng.uniform(-0.5, 0.5, 2) * (width - 0.6, depth - 0.6)
    return Placed(item, (float(x), float(y), 0.0), float(rng.uniform(0, 2 * np.pi)))


def _on_top(rng, host: Placed) -> list[Placed]:
    """One to four small things on a tabletop, apart from one another."""
    if host.item.tabletop is None:
        return []
    small: list[Placed] = []
    width, depth, _ = host.item.extent
    for _ in range(int(rng.integers(1, 5))):
        item = furniture.trinket(rng)
        reach = np.hypot(item.extent[0], item.extent[1]) / 2
        room = np.array([width, depth]) / 2 - reach - 0.01
        if host.item.name == "stool":
            room = room * 0.6
        if (room <= 0).any():
            continue
        x, y = rng.uniform(-1, 1, 2) * room
        c, s = np.cos(host.yaw), np.sin(host.yaw)
        at = (host.offset[0] + c * x - s * y, host.offset[1] + s * x + c * y, host.item.tabletop)
        candidate = Placed(item, at, float(rng.uniform(0, 2 * np.pi)))
        if not any(_collide(candidate, other) for other in small):
            small.append(candidate)
    return small


def _hang(rng, standing: list[Placed], width: float, depth: float, height: float) -> list[Placed]:
    """Pictures on the walls where no furniture hides them."""
    hung: list[Placed] = []
    for _ in range(int(rng.integers(9, 15))):
        wide, tall = rng.uniform(0.45, 1.3), rng.uniform(0.45, min(1.1, height - 1.5))
        picture = furniture.slab("picture", wide, 0.02, tall)
        z = rng.uniform(0.85, height - tall - 0.25)
        for _ in range(12):
            flush = _at_wall(rng, picture, width, depth)
            # Half a centimetre off the wall.
            inward = np.array([np.sin(flush.yaw), -np.cos(flush.yaw)])
            x, y = np.array(flush.offset[:2]) - inward * GAP
            candidate = Placed(picture, (float(x), float(y), z), flush.yaw)
            tall_enough = [other for other in standing if other.item.extent[2] > z - 0.1]
            if not any(_collide(candidate, other) for other in hung + tall_enough):
                hung.append(candidate)
                break
    return hung


def _lamps(rng, standing, taken: list[Placed], width: float, depth: float, height: float) -> list[Placed]:
    """Lamps on rods, outside the clearing and above what stands below them."""
    lamps: list[Placed] = []
    for _ in range(int(rng.integers(0, 4))):
        item = furniture.lamp(rng, rng.uniform(0.5, 0.9))
        tall = [other for other in standing if other.item.extent[2] > height - item.extent[2] - 0.1]
        for _ in range(20):
            spot = _anywhere(rng, item, width - 0.6, depth - 0.6)
            candidate = dataclasses.replace(spot, offset=(*spot.offset[:2], height - item.extent[2]))
            if not any(_collide(candidate, other) for other in taken + lamps + tall):
                lamps.append(candidate)
                break
    return lamps
