"""Pictures against what must stand where."""

import dataclasses

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax import records
from mimic_jax.viz import pictures
from tests.datasets import make_pair


def test_lines_end_at_the_centres_of_matched_patches():
    black = records.encode_image(np.zeros((64, 64, 3), np.uint8))
    correspondence = np.full(16, -1, np.int16)
    correspondence[1] = 14  # row 0, column 1 → row 3, column 2
    pair = dataclasses.replace(make_pair(0), view1=black, view2=black, correspondence=correspondence)
    found = pictures.draw_pair(pair)
    assert found.shape == (64, 64 + 4 + 64, 3)
    for x, y in [(24, 8), (64 + 4 + 40, 56)]:
        assert found[y, x].max() > 100
    untouched = pictures.draw_pair(dataclasses.replace(pair, correspondence=np.full(16, -1, np.int16)))
    assert untouched[:, :64].max() == untouched[:, 68:].max() == 0


def test_grid_puts_pictures_in_their_places(tmp_path):
    cells = [[np.full((4, 6, 3), 10 * row + column, np.uint8) for column in range(3)] for row in range(2)]
    found = pictures.grid(cells)
    assert found.shape == (12, 26, 3)
    assert (found[8:12, 10:16] == 11).all()
    assert (found[4:8] == 255).all()
    pictures.save(found, tmp_path / "new" / "grid.png")
    assert (cv2.imread(str(tmp_path / "new" / "grid.png"))[..., ::-1] == found).all()


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 255),
)
def test_an_image_of_any_shape_fits(shape, size, colour):
    found = pictures.fit(np.full((*shape, 3), colour, np.uint8), size)
    assert found.shape == (*size, 3)
    assert (found == colour).all(), "nothing is added at the edges"


def test_an_image_is_covered_and_its_middle_kept():
    """Three times the height that is needed: each pixel is the mean of 3 × 3, and of the width the middle is left."""
    image = np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)
    means = image.reshape(8, 3, 16, 3, 3).mean((1, 3))
    assert np.abs(pictures.fit(image, (8, 10)) - means[:, 3:13]).max() <= 0.5
    assert np.abs(pictures.fit(image.swapaxes(0, 1), (10, 8)) - means[:, 3:13].swapaxes(0, 1)).max() <= 0.5
    assert (pictures.fit(image, (24, 48)) == image).all()
    assert pictures.fit(image[::3, ::3], (24, 48)).shape == (24, 48, 3)


def test_tints_follow_the_rows_and_columns_of_their_grid():
    colours = pictures.place_colours((2, 3))
    assert (np.diff(colours[:3, 0]) > 0).all(), "red grows to the right"
    assert (colours[3:, 1] > colours[:3, 1]).all(), "green grows downwards"
    tinted = pictures.tint(np.zeros((20, 30, 3), np.uint8), np.array([4]), colours[4:5], (2, 3))
    assert (tinted[10:, 10:20] == (0.45 * colours[4]).round()).all()
    assert tinted.sum() == tinted[10:, 10:20].astype(int).sum()
