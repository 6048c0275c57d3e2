"""Pictures of dense predictions against what every pixel must show."""

import numpy as np

from mimic_jax.viz import dense

TOP, GAP = 20, 4  # of pictures.grid


def cell(picture, row, column, height, width):
    y, x = TOP + row * (height + GAP), column * (width + GAP)
    return picture[y : y + height, x : x + width]


def test_colours_follow_depth_and_unknown_is_black():
    depth = np.float32([[0, 1, 2, 3, 5, 9]])
    found = dense.draw_depth(depth, (1.0, 5.0)).astype(int)
    assert (found[0, 0] == 0).all()
    assert found[0, 1, 0] > found[0, 1, 2], "near is red"
    assert found[0, 4, 2] >= found[0, 4, 0], "far is blue"
    np.testing.assert_array_equal(found[0, 4], found[0, 5])
    assert len(np.unique(found[0, :5], axis=0)) == 5


def test_the_range_is_of_known_depths():
    depth = np.concatenate([np.zeros(500), np.linspace(1, 3, 101)]).astype(np.float32)
    np.testing.assert_allclose(dense.depth_range(depth), (1.04, 2.96), atol=1e-4)
    assert dense.depth_range(np.zeros(4, np.float32)) == (0.0, 1.0)
    low, high = dense.depth_range(np.full(4, 2, np.float32))
    assert low < high


def test_normals_are_their_encodings_at_any_length():
    normals = np.float32([[[0, 0, 1], [-2, 0, 0], [0, 0.6, 0.8], [0, 0, 0]]])
    expected = [[128, 128, 255], [0, 128, 128], [128, 204, 230], [0, 0, 0]]
    np.testing.assert_allclose(dense.draw_normals(normals)[0], expected, atol=1)


def test_errors_grow_brighter_and_unknown_truth_is_grey():
    error = np.float32([[0, 0.1, 0.3, 0.5, 9]])
    valid = np.array([[True, True, True, True, False]])
    found = dense.draw_error(error, valid, 0.5).astype(int)
    assert (np.diff(found[0, :4].sum(-1)) > 0).all()
    assert found[0, 0].max() <= 10
    assert found[0, 3].min() >= 245
    np.testing.assert_array_equal(found[0, 4], [128] * 3)


def test_a_row_is_input_prediction_truth_and_error():
    height, width = 100, 120
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    truths = rng.uniform(1, 4, (2, height, width)).astype(np.float32)
    truths[:, :10] = 0
    predictions = 1.25 * truths + (truths == 0)
    found = dense.draw_depths(images, predictions, truths)
    assert found.shape == (TOP + 2 * height + GAP, 4 * width + 3 * GAP, 3)
    for row in range(2):
        shown = dense.depth_range(truths[row])
        np.testing.assert_array_equal(cell(found, row, 0, height, width), images[row])
        expected = dense.draw_depth(predictions[row], shown)
        np.testing.assert_array_equal(cell(found, row, 1, height, width), expected)
        np.testing.assert_array_equal(cell(found, row, 2, height, width), dense.draw_depth(truths[row], shown))
        error = cell(found, row, 3, height, width)
        assert (error[:10] == 128).all()
        # A quarter of the depth, everywhere: half of what is white.
        one = dense.draw_error(np.float32([[0.25]]), np.array([[True]]), dense.MOST_RELATIVE)[0, 0].astype(int)
        assert np.abs(error[10:].astype(int) - one).max() <= 4


def test_a_row_of_normals_shows_the_angle():
    truths = np.zeros((1, 8, 12, 3), np.float32)
    truths[..., 2] = 1
    truths[:, :, :4] = 0
    predictions = np.zeros_like(truths)
    predictions[..., 1], predictions[..., 2] = 3 * np.sin(np.pi / 6), 3 * np.cos(np.pi / 6)
    found = dense.draw_normal_maps(np.zeros((1, 8, 12, 3), np.uint8), predictions, truths)
    error = cell(found, 0, 3, 64, 96)  # enlarged eightfold, so that headings fit
    assert (error[:, :32] == 128).all()
    one = dense.draw_error(np.float32([[30]]), np.array([[True]]), dense.MOST_DEGREES)[0, 0].astype(int)
    assert np.abs(error[:, 32:].astype(int) - one).max() <= 4
    np.testing.assert_array_equal(cell(found, 0, 1, 64, 96)[0, 0], dense.draw_normals(predictions[0])[0, 0])
