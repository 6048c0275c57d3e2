"""Where somebody could stand, checked against exact distances and known floor plans."""

import numpy as np
import pytest
import trimesh

from data_prep.worlds import free_space, glb
from mimic_jax.command import InputError


def test_free_places_are_clear(room, distance_to_surfaces):
    free = free_space.find_free_space(room, 1.3)
    chosen = free.points[:: max(1, len(free.points) // 40)]
    assert distance_to_surfaces(room, chosen).min() > free_space.CLEARANCE
    # Floor, rug, or the bottom of an open box.
    np.testing.assert_allclose(chosen[:, 1], 1.3, atol=free_space.STAIR)


@pytest.mark.parametrize("inward", [False, True])
def test_a_closed_room_of_either_winding(save, inward):
    shell = trimesh.creation.box((5, 3, 4))
    shell.apply_translation((0, 1.5, 0))
    if inward:
        shell.invert()
    world = glb.read_world(save(shell))
    free = free_space.find_free_space(world, 1.6)
    # All that is 0.38 m off the walls, on a grid of 0.2 m: about 4.2 × 3.2 metres.
    assert np.abs(free.points[:, 0]).max() < 2.5 - 0.3
    assert np.abs(free.points[:, 2]).max() < 2.0 - 0.3
    assert len(free.points) > 0.8 * (4.2 / 0.2) * (3.2 / 0.2)
    np.testing.assert_allclose(free.points[:, 1], 1.6, atol=1e-4)


def test_the_larger_of_two_rooms_and_neither_roof_nor_cupboard(save):
    large, small = trimesh.creation.box((5, 3, 5)), trimesh.creation.box((3, 3, 3))
    cupboard = trimesh.creation.box((1.2, 2.4, 1.2))
    large.apply_translation((0, 1.5, 0))
    small.apply_translation((8, 1.5, 0))
    cupboard.apply_translation((1, 1.2, 1))
    world = glb.read_world(save({"large": large, "small": small, "cupboard": cupboard}))
    free = free_space.find_free_space(world, 1.5)
    assert (np.abs(free.points[:, 0]) < 2.5).all()
    assert (free.points[:, 1] < 2).all()
    assert not ((np.abs(free.points[:, [0, 2]] - 1) < 0.6 + 0.3).all(1)).any()


@pytest.mark.parametrize("extents", [(1.0, 1.0, 1.0), (6.0, 1.1, 6.0), (0.5, 3.0, 0.5)])
def test_nowhere_to_stand(save, extents):
    world = glb.read_world(save(trimesh.creation.box(extents)))
    with pytest.raises(InputError, match="no free place"):
        free_space.find_free_space(world, 1.5)


@pytest.fixture
def rooms_with_a_door(save):
    """Two rooms of 5 × 4 m, 3 m high, and between them a wall with an opening of 0.8 × 2.1 m."""
    shell = trimesh.creation.box((10, 3, 4))
    wall = [((0.1, 3, 1.6), (0, 0, -1.2)), ((0.1, 3, 1.6), (0, 0, 1.2)), ((0.1, 0.9, 0.8), (0, 1.05, 0))]
    parts = {"shell": shell}
    for number, (extents, centre) in enumerate(wall):
        parts[f"wall{number}"] = trimesh.creation.box(extents)
        parts[f"wall{number}"].apply_translation(centre)
    return glb.read_world(save(parts))


def test_a_door_joins_two_rooms_for_a_slim_camera(rooms_with_a_door):
    slim = free_space.find_islands(rooms_with_a_door, 1.5, clearance=0.1)
    assert len(slim) == 1
    # From the middle of the door to a corner, less what keeps clear.
    assert slim[0].radius == pytest.approx(np.hypot(5, 2) - np.hypot(0.18, 0.18), abs=0.3)
    wide = free_space.find_islands(rooms_with_a_door, 1.5, clearance=0.3)
    assert len(wide) == 2
    assert {round(float(np.sign(island.points[:, 0].mean()))) for island in wide} == {-1, 1}
    assert len(wide[0].points) >= len(wide[1].points)
    assert all((np.sign(island.points[:, 0]) == np.sign(island.points[0, 0])).all() for island in wide)


def test_storeys_are_islands_of_their_own(save):
    """Two storeys of one house: floors 3 m apart."""
    house = trimesh.creation.box((6, 6, 5))
    house.apply_translation((0, 3, 0))
    slab = trimesh.creation.box((6, 0.2, 5))
    slab.apply_translation((0, 3.1, 0))
    islands = free_space.find_islands(glb.read_world(save({"house": house, "slab": slab})), 1.4)
    assert sorted(round(float(island.points[:, 1].mean()), 2) for island in islands) == [1.4, 4.6]


@pytest.mark.parametrize("up", ["y", "z"])
def test_level_axes_are_right_handed(up):
    axes = free_space.level_axes(up)
    np.testing.assert_array_equal(np.cross(axes[0], axes[1]), axes[2])
    np.testing.assert_array_equal(axes[2], np.eye(3)["xyz".index(up)])
