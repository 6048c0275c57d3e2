"""Pairs that truly share what they show, recomputed pixel by pixel."""

import collections

import numpy as np
import pytest
import trimesh

from data_prep import overlap
from data_prep.worlds import covisible, stage

SIZE, PATCH, HEIGHT = 96, 16, 1.6
FOCAL = SIZE / 2 / np.tan(np.radians(30))


@pytest.fixture(scope="module")
def opened(room_file):
    return stage.open_stage(room_file, HEIGHT, "y", covisible.camera(SIZE))


@pytest.fixture(scope="module")
def draws(opened):
    return [covisible.film(opened, np.random.default_rng(seed)) for seed in range(60)]


@pytest.fixture(scope="module")
def pairs(draws):
    pairs = [draw for draw in draws if isinstance(draw, covisible.Pair)]
    assert len(pairs) >= 5
    return pairs


def world_points(depth, pose):
    """Pixel (x, y) at depth z is at ((x − c) z / f, (y − c) z / f, z) before the camera."""
    row, column = np.mgrid[:SIZE, :SIZE]
    centre = (SIZE - 1) / 2
    local = np.stack([(column - centre) / FOCAL * depth, (row - centre) / FOCAL * depth, depth], axis=2)
    return local.astype(float) @ pose[:3, :3].T + pose[:3, 3]


def test_kept_pairs_share_half_of_what_they_see(pairs, draws):
    assert {draw for draw in draws if isinstance(draw, str)} == {"co-visibility too low"}
    rng = np.random.default_rng(0)
    for pair in pairs:
        views = [(pair.depth1, pair.pose1), (pair.depth2, pair.pose2)]
        for (depth, pose), other in zip(views, views[::-1], strict=True):
            assert (depth > 0).mean() >= 0.7
            assert depth.shape == (SIZE, SIZE)
            points, others = world_points(depth, pose).reshape(-1, 3), world_points(*other).reshape(-1, 3)
            some = points[rng.choice(len(points), 400, replace=False)]
            nearest = np.linalg.norm(some[:, None] - others, axis=2).min(axis=1)
            # 400 of 9216 pixels: three standard deviations.
            assert (nearest <= 0.05).mean() > 0.5 - 3 * np.sqrt(0.25 / 400)


def test_cameras_stand_clear_at_eye_height_and_look_at_the_same(
    opened, pairs, distance_to_surfaces, height_above_floor
):
    eyes = np.array([pose[:3, 3] for pair in pairs for pose in (pair.pose1, pair.pose2)])
    assert distance_to_surfaces(opened.world, eyes).min() > 0.1
    np.testing.assert_allclose(height_above_floor(opened.world, eyes), HEIGHT, atol=1e-4)
    assert np.median(np.linalg.norm(eyes[::2] - eyes[1::2], axis=1)) > 0.3
    noise = []
    for pair in pairs:
        middle = world_points(pair.depth1, pair.pose1)[pair.depth1 > 0].mean(axis=0)
        for pose, aim in ((pair.pose1, None), (pair.pose2, middle - pair.pose2[:3, 3])):
            right, down, forward = pose[:3, :3].T
            tilt = np.degrees(np.arcsin(forward[1]))
            level = np.cross(forward, [0, 1, 0])
            roll = np.degrees(np.arctan2(right[1], -down[1]))
            assert abs(roll) < 5.1  # seen in the picture's plane, roll is a little more than about the gaze
            if aim is None:
                assert abs(tilt) <= 10
            else:
                to = np.degrees([np.arctan2(aim[0], aim[2]), np.arcsin(aim[1] / np.linalg.norm(aim))])
                pan = (np.degrees(np.arctan2(forward[0], forward[2])) - to[0] + 180) % 360 - 180
                assert abs(pan) <= 3
                assert abs(tilt - to[1]) <= 10
                noise.append((pan, tilt - to[1], roll))
            assert np.linalg.norm(level) > 0.8
    assert (np.ptp(noise, axis=0) > (1, 3, 2)).all()


def looked_up(pair, forward):
    """Patch → patch by a plain walk over all pixels, one by one."""
    one, two = (pair.depth1, pair.pose1), (pair.depth2, pair.pose2)
    (depth, pose), (other, target) = (one, two) if forward else (two, one)
    points = world_points(depth, pose)
    grid = SIZE // PATCH
    votes = collections.defaultdict(collections.Counter)
    for row in range(SIZE):
        for column in range(SIZE):
            x, y, z = target[:3, :3].T @ (points[row, column] - target[:3, 3])
            to = -1
            if depth[row, column] > 0 and z > 1e-6:
                x, y = FOCAL * x / z + (SIZE - 1) / 2, FOCAL * y / z + (SIZE - 1) / 2
                nearest = round(y), round(x)
                if min(nearest) >= 0 and max(nearest) < SIZE and abs(other[nearest] - z) <= 0.05:
                    to = nearest[0] // PATCH * grid + nearest[1] // PATCH
            votes[row // PATCH * grid + column // PATCH][to] += 1
    taken, found = set(), {}
    for patch in range(grid * grid):
        outside = votes[patch].pop(-1, 0)
        to, most = min(votes[patch].items(), key=lambda item: (-item[1], item[0]), default=(-1, 0))
        if most and most >= outside and to not in taken:
            taken.add(to)
            found[patch] = to
    return found


def test_correspondence_is_the_smaller_of_both_true_maps(opened, pairs):
    sizes = []
    for pair in pairs[:4]:
        forward, backward = looked_up(pair, True), looked_up(pair, False)
        expected = forward if len(forward) <= len(backward) else {to: patch for patch, to in backward.items()}
        found = covisible.correspondence(pair, opened.camera, PATCH)
        assert found.dtype == np.int16
        assert {patch: to for patch, to in enumerate(found.tolist()) if to >= 0} == expected
        sizes.append((len(forward), len(backward)))
    assert any(one != two for one, two in sizes)


def test_pixels_that_are_known_vote_as_those_of_a_homography_do():
    """A shift by whole pixels, worked out both ways."""
    row, column = np.mgrid[:SIZE, :SIZE]
    for x, y in ((0, 0), (16, 0), (-21, 40), (3, -7), (90, 0)):
        position = np.stack([column + x, row + y], axis=2).astype(float)
        seen = ((position >= 0) & (position < SIZE)).all(axis=2)
        shift = np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])
        expected = overlap.destinations(shift, SIZE, PATCH, votes=None)
        np.testing.assert_array_equal(overlap.destinations_of(position, seen, PATCH), expected)


def test_too_little_depth(save):
    """A room without one of its walls: who looks out sees nothing."""
    room = trimesh.creation.box((6, 3, 6))
    room.update_faces(room.face_normals[:, 0] < 0.5)
    opened = stage.open_stage(save(room), 1.5, "y", covisible.camera(48))
    reasons = collections.Counter(
        draw if isinstance(draw, str) else "kept"
        for draw in (covisible.film(opened, np.random.default_rng(seed)) for seed in range(40))
    )
    assert reasons["too little depth"] > 3
    assert reasons["kept"] > 0
