"""Where the camera goes, checked against exact point–triangle distances."""

import dataclasses

import numpy as np
import pytest
import trimesh

from data_prep.worlds import glb, paths, raycast, truth
from mimic_jax.command import InputError


def distance_to_surfaces(world, points):
    """Exact, and independent of rays: the closest point of every triangle."""
    nearest = []
    for point in points:
        to_box = np.maximum(world.corners.min(1) - point, point - world.corners.max(1)).max(1)
        near = world.corners[to_box < 1.0].astype(float)
        closest = trimesh.triangles.closest_point(near, np.broadcast_to(point, (len(near), 3)))
        nearest.append(np.linalg.norm(closest - point, axis=1).min(initial=1.0))
    return np.array(nearest)


@pytest.fixture(scope="module")
def walk(room):
    free = paths.find_free_space(room, 1.5)
    return paths.plan_path(room, free, 96, 20.0, np.random.default_rng(0))


def test_keeps_clear_of_all_surfaces(room, walk):
    assert distance_to_surfaces(room, walk[::2, :3, 3]).min() > paths.CLEARANCE


def test_free_places_are_clear(room):
    free = paths.find_free_space(room, 1.3)
    chosen = free.points[:: max(1, len(free.points) // 40)]
    assert distance_to_surfaces(room, chosen).min() > paths.CLEARANCE
    # Floor, rug, or the bottom of an open box.
    np.testing.assert_allclose(chosen[:, 1], 1.3, atol=paths.STAIR)


def test_poses_are_rotations_upright_and_at_eye_height(walk):
    rotation = walk[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (96, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-9)
    # y of the picture points down; roll is small.
    assert (rotation[:, 1, 1] < -0.85).all()
    assert np.degrees(np.abs(np.arcsin(rotation[:, 1, 0]))).max() < 2
    np.testing.assert_allclose(walk[:, 1, 3], 1.5, atol=0.03)


def test_moves_smoothly_and_both_ways(walk):
    position = walk[:, :3, 3]
    step = np.linalg.norm(np.diff(position, axis=0), axis=1)
    assert step.max() < 0.06
    assert step.sum() > 0.8
    assert np.linalg.norm(np.diff(position, n=2, axis=0), axis=1).max() < 0.01
    turn = np.arccos(np.clip((walk[1:, :3, 2] * walk[:-1, :3, 2]).sum(1), -1, 1))
    assert np.degrees(turn).max() < 4
    assert np.degrees(turn).sum() > 45


def test_views_half_a_second_to_a_second_and_a_half_apart_share_half_to_three_quarters(room, walk):
    intrinsics = raycast.pinhole(48)
    depths = [raycast.render(room, pose, intrinsics, 48).depth for pose in walk[::6]]
    shared = [
        truth.covisibility(depths[i], walk[6 * i], depths[i + gap], walk[6 * (i + gap)], intrinsics)
        for gap in (1, 2, 3, 5)
        for i in range(len(depths) - gap)
    ]
    inside = np.mean([0.5 <= share <= 0.75 for share in shared])
    print(f"co-visibility 0.3–1.5 s apart: {np.quantile(shared, [0.1, 0.5, 0.9]).round(2)}, {inside:.0%} in 50–75 %")
    assert inside > 0.2


def test_same_seed_same_path(room, walk):
    free = paths.find_free_space(room, 1.5)
    again = paths.plan_path(room, free, 96, 20.0, np.random.default_rng(0))
    other = paths.plan_path(room, free, 96, 20.0, np.random.default_rng(1))
    assert (again == walk).all()
    assert np.abs(other - walk).max() > 0.1


@pytest.mark.parametrize("inward", [False, True])
def test_a_closed_room_of_either_winding(save, inward):
    shell = trimesh.creation.box((5, 3, 4))
    shell.apply_translation((0, 1.5, 0))
    if inward:
        shell.invert()
    world = glb.read_world(save(shell))
    free = paths.find_free_space(world, 1.6)
    # All that is 0.38 m off the walls, on a grid of 0.2 m: about 4.2 × 3.2 metres.
    assert np.abs(free.points[:, 0]).max() < 2.5 - 0.3
    assert np.abs(free.points[:, 2]).max() < 2.0 - 0.3
    assert len(free.points) > 0.8 * (4.2 / 0.2) * (3.2 / 0.2)
    np.testing.assert_allclose(free.points[:, 1], 1.6, atol=1e-4)


def test_z_up(save):
    shell = trimesh.creation.box((5, 4, 3))
    world = glb.read_world(save(shell))
    free = paths.find_free_space(world, 1.4, up="z")
    np.testing.assert_allclose(free.points[:, 2], -1.5 + 1.4, atol=1e-4)
    poses = paths.plan_path(world, free, 20, 20.0, np.random.default_rng(0))
    assert (poses[:, 2, 1] < -0.85).all()


def test_the_larger_of_two_rooms_and_neither_roof_nor_cupboard(save):
    large, small = trimesh.creation.box((5, 3, 5)), trimesh.creation.box((3, 3, 3))
    cupboard = trimesh.creation.box((1.2, 2.4, 1.2))
    large.apply_translation((0, 1.5, 0))
    small.apply_translation((8, 1.5, 0))
    cupboard.apply_translation((1, 1.2, 1))
    world = glb.read_world(save({"large": large, "small": small, "cupboard": cupboard}))
    free = paths.find_free_space(world, 1.5)
    assert (np.abs(free.points[:, 0]) < 2.5).all()
    assert (free.points[:, 1] < 2).all()
    assert not ((np.abs(free.points[:, [0, 2]] - 1) < 0.6 + 0.3).all(1)).any()


def test_nowhere_to_go(save):
    """From a place too near to the wall every walk fails; the camera must not just stand there."""
    world = glb.read_world(save(trimesh.creation.box((5, 3, 4))))
    there = paths.find_free_space(world, 1.5)
    stuck = dataclasses.replace(there, points=np.array([[2.45, 0.0, 0.0]]))
    with pytest.raises(InputError, match="too small to move in"):
        paths.plan_path(world, stuck, 40, 20.0, np.random.default_rng(0))
    poses = paths.plan_path(world, there, 40, 20.0, np.random.default_rng(0))
    assert np.ptp(poses[:, :3, 3], axis=0).max() > 0.1


@pytest.mark.parametrize("extents", [(1.0, 1.0, 1.0), (6.0, 1.1, 6.0), (0.5, 3.0, 0.5)])
def test_nowhere_to_stand(save, extents):
    world = glb.read_world(save(trimesh.creation.box(extents)))
    with pytest.raises(InputError, match="no free place"):
        paths.find_free_space(world, 1.5)
