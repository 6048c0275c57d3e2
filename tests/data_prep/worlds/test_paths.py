"""Where the camera goes, checked against exact point–triangle distances."""

import dataclasses

import numpy as np
import pytest
import trimesh

from data_prep.worlds import free_space, glb, paths, raycast, truth
from mimic_jax.command import InputError


@pytest.fixture(scope="module")
def walk(room):
    free = free_space.find_free_space(room, 1.5)
    return paths.plan_path(room, free, 96, 20.0, np.random.default_rng(0))


def test_keeps_clear_of_all_surfaces(room, walk, distance_to_surfaces):
    assert distance_to_surfaces(room, walk[::2, :3, 3]).min() > free_space.CLEARANCE


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
    free = free_space.find_free_space(room, 1.5)
    again = paths.plan_path(room, free, 96, 20.0, np.random.default_rng(0))
    other = paths.plan_path(room, free, 96, 20.0, np.random.default_rng(1))
    assert (again == walk).all()
    assert np.abs(other - walk).max() > 0.1


def test_z_up(save):
    shell = trimesh.creation.box((5, 4, 3))
    world = glb.read_world(save(shell))
    free = free_space.find_free_space(world, 1.4, up="z")
    np.testing.assert_allclose(free.points[:, 2], -1.5 + 1.4, atol=1e-4)
    poses = paths.plan_path(world, free, 20, 20.0, np.random.default_rng(0))
    assert (poses[:, 2, 1] < -0.85).all()


def test_nowhere_to_go(save):
    """From a place too near to the wall every walk fails; the camera must not just stand there."""
    world = glb.read_world(save(trimesh.creation.box((5, 3, 4))))
    there = free_space.find_free_space(world, 1.5)
    stuck = dataclasses.replace(there, points=np.array([[2.45, 0.0, 0.0]]))
    with pytest.raises(InputError, match="too small to move in"):
        paths.plan_path(world, stuck, 40, 20.0, np.random.default_rng(0))
    poses = paths.plan_path(world, there, 40, 20.0, np.random.default_rng(0))
    assert np.ptp(poses[:, :3, 3], axis=0).max() > 0.1
