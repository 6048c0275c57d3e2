"""Correspondences against a plain loop written from the specification, and against polygon areas."""

import collections

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import overlap


def loop_destination(votes):
    """Majority with ties to a patch before the outside (−1), then to the lower patch."""
    count = collections.Counter(votes)
    return min(count, key=lambda patch: (-count[patch], patch == -1, patch))


def loop_map(h, size, patch, pixels_of):
    grid, taken, result = size // patch, set(), {}
    for p in range(grid * grid):
        votes = []
        for x, y in pixels_of(p):
            u, v, w = (h[row][0] * x + h[row][1] * y + h[row][2] for row in range(3))
            if w <= 0 or not (0 <= u / w < size and 0 <= v / w < size):
                votes.append(-1)
            else:
                votes.append(int(v / w // patch) * grid + int(u / w // patch))
        d = loop_destination(votes)
        if d != -1 and d not in taken:
            taken.add(d)
            result[p] = d
    return result


def loop_correspondences(h, size, patch, pixels_of):
    forward = loop_map(h.tolist(), size, patch, pixels_of)
    backward = loop_map(np.linalg.inv(h).tolist(), size, patch, pixels_of)
    kept = {second: first for first, second in backward.items()} if len(backward) < len(forward) else forward
    return [kept.get(p, -1) for p in range((size // patch) ** 2)]


def every_pixel(size, patch):
    grid = size // patch
    return lambda p: [(p % grid * patch + x, p // grid * patch + y) for y in range(patch) for x in range(patch)]


def random_homography(kind, seed, size):
    rng = np.random.default_rng(seed)
    if kind == "translation":
        x, y = rng.integers(-size, size, 2)
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    # "wild" corners are often not convex: the horizon then crosses the image.
    spread = {"mild": 0.3, "wild": 1.5}[kind] * size
    moved = (corners + rng.uniform(-spread, spread, (4, 2))).astype(np.float32)
    return cv2.getPerspectiveTransform(corners, moved)


homographies = given(kind=st.sampled_from(["translation", "mild", "wild"]), seed=st.integers(0, 10**9))


@pytest.mark.parametrize(("size", "patch"), [(64, 16), (42, 14), (40, 4)])
@settings(max_examples=60, deadline=None)
@homographies
def test_every_pixel_equals_the_plain_loop(size, patch, kind, seed):
    h = random_homography(kind, seed, size)
    expected = loop_correspondences(h, size, patch, every_pixel(size, patch))
    assert overlap.correspondences(h, size, patch, votes=None).tolist() == expected


@settings(max_examples=15, deadline=None)
@homographies
def test_drawn_pixels_equal_the_plain_loop_on_the_same_draw(kind, seed):
    drawn = overlap._pixels(224, 16, overlap.VOTES)[0].reshape(196, 100, 2).tolist()
    h = random_homography(kind, seed, 224)
    assert overlap.correspondences(h).tolist() == loop_correspondences(h, 224, 16, drawn.__getitem__)


def test_the_draw_is_one_hundred_pixels_of_each_patch_and_never_changes():
    drawn = overlap._pixels(224, 16, overlap.VOTES)[0].reshape(196, 100, 2)
    assert (drawn == np.floor(drawn)).all()
    assert (drawn // 16 == np.array([[p % 14, p // 14] for p in range(196)])[:, None]).all()
    within = drawn % 16
    assert within.min() == 0
    assert within.max() == 15
    assert abs(within.mean() - 7.5) < 0.1
    # The first pixels as the legacy generator of NumPy has drawn them since 2006.
    assert drawn[0, :4].tolist() == [[12, 15], [5, 0], [3, 11], [3, 7]]


@pytest.mark.parametrize("votes", [None, overlap.VOTES])
@pytest.mark.parametrize(("across", "down"), [(0, 0), (3, 0), (0, -5), (-4, 2), (13, 13), (14, 0)])
def test_a_shift_by_whole_patches_is_exact(across, down, votes):
    h = np.array([[1, 0, 16 * across], [0, 1, 16 * down], [0, 0, 1]], float)
    expected = [
        (row + down) * 14 + column + across if 0 <= row + down < 14 and 0 <= column + across < 14 else -1
        for row in range(14)
        for column in range(14)
    ]
    found = overlap.correspondences(h, votes=votes)
    assert found.tolist() == expected
    assert overlap.overlap(found) == max(0, 14 - abs(across)) * max(0, 14 - abs(down)) / 196


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), votes=st.sampled_from([None, overlap.VOTES]))
def test_patches_that_land_inside_cover_the_area_of_the_intersection(seed, votes):
    h = random_homography("mild", seed, 224)
    frame = np.array([[0, 0], [224, 0], [224, 224], [0, 224]], np.float32)
    back = cv2.perspectiveTransform(frame[None], np.linalg.inv(h))[0]
    if (np.c_[back, np.ones(4)] @ h[2]).min() <= 0:
        return  # The frame's outline passes through the horizon: no polygon to compare with.
    area, _ = cv2.intersectConvexConvex(frame, back)
    inside = np.mean(overlap.destinations(h, votes=votes) >= 0)
    assert inside == pytest.approx(area / 224**2, abs=0.05)


def test_overlap_of_rotations_is_at_most_the_area_and_not_much_less():
    frame = np.array([[0, 0], [224, 0], [224, 224], [0, 224]], np.float32)
    for angle in range(0, 90, 7):
        h = np.vstack([cv2.getRotationMatrix2D((112, 112), angle, 1), [0, 0, 1]])
        h[:2, 2] += (30, 20)
        area, _ = cv2.intersectConvexConvex(frame, cv2.perspectiveTransform(frame[None], h)[0])
        found = overlap.overlap(overlap.correspondences(h))
        assert 0.7 * area / 224**2 < found < area / 224**2 + 0.03, angle


def test_ties_go_to_the_lower_patch_and_to_a_patch_before_the_outside():
    half = np.array([[1, 0, 8], [0, 1, 0], [0, 0, 1]], float)
    assert overlap.destinations(half, 64, 16, votes=None)[:4].tolist() == [0, 1, 2, 3]
    back = np.array([[1, 0, -8], [0, 1, 0], [0, 0, 1]], float)
    assert overlap.destinations(back, 64, 16, votes=None)[:4].tolist() == [0, 0, 1, 2]
    one_more = np.array([[1, 0, 9], [0, 1, 0], [0, 0, 1]], float)
    assert overlap.destinations(one_more, 64, 16, votes=None)[:4].tolist() == [1, 2, 3, -1]


@pytest.mark.parametrize(
    "h",
    [
        np.zeros((3, 3)),
        np.diag([1.0, 1, 0]),
        np.ones((3, 3)),
        np.full((3, 3), np.nan),
        -np.eye(3),
        np.diag([1, np.inf, 1]),
    ],
)
def test_homographies_that_map_nothing_match_nothing(h):
    found = overlap.correspondences(h)
    assert (found == -1).all()
    assert overlap.overlap(found) == 0


def test_points_behind_the_horizon_land_outside():
    # w = 1 − x/100 and u = v = −50/w: inside the frame for x = 150, were it not behind the horizon at x = 100.
    h = np.array([[0, 0, -50], [0, 0, -50], [-0.01, 0, 1]])
    assert (overlap.destinations(h) == -1).all()
    landed = overlap.destinations(-h).reshape(14, 14)
    assert (landed[:, :6] == -1).all()
    assert (landed[:, 9:] >= 0).all()


@given(st.lists(st.integers(-1, 9), max_size=30))
def test_one_to_one_equals_the_walk(destinations):
    taken, expected = set(), []
    for d in destinations:
        expected.append(d if d != -1 and d not in taken else -1)
        taken.add(d)
    assert overlap.one_to_one(np.array(destinations, np.int64)).tolist() == expected


def test_single_precision_homographies_are_taken():
    assert overlap.correspondences(np.eye(3, dtype=np.float32)).tolist() == list(range(196))
