"""Pictures of matches against what must stand where."""

import numpy as np
import pytest

from mimic_jax.viz.correspondences import _GAP, draw_lines, paint, returning, surest_patches
from mimic_jax.viz.pictures import place_colours

BLACK = np.zeros((40, 60, 3), np.uint8)
CELLS = (4, 6)


def test_view_2_has_the_colours_of_what_is_found_there():
    """All is found in the last patch, except the first, which is found in the second."""
    found = np.full(24, 23)
    found[0] = 1
    view1, view2 = paint(BLACK, BLACK, found, CELLS)
    colours = place_colours(CELLS)
    for patch in range(24):
        here = np.s_[patch // 6 * 10 : patch // 6 * 10 + 10, patch % 6 * 10 : patch % 6 * 10 + 10]
        assert (view1[here] == (0.45 * colours[patch]).round()).all()
        expected = {1: colours[0], 23: colours[1:].mean(0)}.get(patch, np.zeros(3))
        assert np.abs(view2[here] - 0.45 * expected).max() <= 0.5 + 1e-6


def test_lines_go_from_a_patch_to_where_it_is_found():
    scores = np.full((24, 24), 0.01, np.float32)
    scores[7, 22] = 0.9  # row 1, column 1 → row 3, column 4
    canvas = draw_lines(BLACK, BLACK, scores, CELLS)
    assert canvas.shape == (40, 60 + _GAP + 60, 3)
    # Up by a sixth of a patch, as the second column of six has it.
    for x, y in [(15, 13), (60 + _GAP + 45, 33)]:
        np.testing.assert_array_equal(canvas[y, x], place_colours(CELLS)[7].round())


def test_the_surest_patches_are_spread():
    rng = np.random.default_rng(0)
    chosen = surest_patches(rng.random((196, 196)).astype(np.float32), (14, 14))
    assert 6 <= len(chosen) <= 16
    places = np.stack(np.divmod(chosen, 14), -1)
    distances = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert distances[~np.eye(len(chosen), dtype=bool)].min() >= 3.5
    scores = np.full((196, 4), 0.1, np.float32)
    scores[[100, 5], [0, 1]] = 0.9, 0.8
    assert surest_patches(scores, (14, 14))[:2] == [100, 5]


def test_matches_that_lead_back_are_within_one_patch():
    """On 2 × 3 patches: back to itself, one aside, two aside, diagonal, one below, itself."""
    there = np.array([5, 4, 3, 2, 1, 0])
    back = np.empty(6, int)
    back[there] = [0, 2, 0, 1, 1, 5]
    assert returning(there, back, (2, 3)) == pytest.approx(4 / 6)
