"""Augmentation of labelled images against plain NumPy: labels must follow the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.data import geometry
from mimic_jax.data.augment import denormalize
from mimic_jax.data.geometry import Geometry, augment, center_crop, nearest_windows, resize_shorter, whole_cells

ROWS, HEIGHT, WIDTH = 24, 40, 56


def painted(height=HEIGHT, width=WIDTH):
    """Rows whose image and labels tell their own coordinates: red is 4 · row, green 4 · column, so is every label."""
    row, column = np.mgrid[:height, :width]
    image = np.stack([4 * row, 4 * column, 0 * row], axis=-1).astype(np.uint8)
    one = {
        "image": image,
        "depth": (1000 * row + column + 1).astype(np.float32),
        "classes": (1000 * row + column).astype(np.int32),
        "normals": np.stack([column + 1, row, 0 * row], axis=-1).astype(np.float32),
    }
    batch = {name: jnp.asarray(np.repeat(array[None], ROWS, axis=0)) for name, array in one.items()}
    return batch | {"index": jnp.arange(ROWS)}


def coordinates(found):
    """Rows and columns that the labels of a batch tell, after every label agreed; and which rows were mirrored."""
    row, column = np.divmod(np.asarray(found["classes"]), 1000)
    np.testing.assert_array_equal(np.asarray(found["depth"]), 1000 * row + column + 1)
    normals = np.asarray(found["normals"])
    mirrored = normals[:, 0, 0, 0] < 0
    sign = np.where(mirrored, -1, 1)[:, None, None]
    np.testing.assert_array_equal(normals, np.stack([sign * (column + 1), row, 0 * row], axis=-1))
    return row, column, mirrored


apply = jax.jit(augment, static_argnums=2)


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_crops_and_flips_move_every_label_exactly_with_the_image(flip):
    found = apply(jax.random.key(0), painted(), Geometry((16, 24), flip=flip))
    row, column, mirrored = coordinates(found)
    image = np.asarray(denormalize(found["image"])) * 255
    np.testing.assert_allclose(image, np.stack([4 * row, 4 * column, 0 * row], -1), atol=1e-3)
    np.testing.assert_array_equal(np.diff(row, axis=1), 1)
    np.testing.assert_array_equal(np.diff(column, axis=2), np.where(mirrored, -1, 1)[:, None, None] * np.ones((16, 23)))
    assert mirrored.mean() == flip if flip in (0, 1) else 0 < mirrored.mean() < 1
    # Each row has its own window, and every window is within reach.
    assert len(np.unique(row[:, 0, 0])) > 8
    assert len(np.unique(column.min((1, 2)))) > 8
    np.testing.assert_array_equal(found["index"], np.arange(ROWS))
    assert found["classes"].dtype == jnp.int32


def test_every_place_of_a_crop_occurs_and_no_other():
    found = apply(jax.random.key(1), {"image": jnp.zeros((400, 7, 6, 3), jnp.uint8), "classes": grid(400, 7, 6)}, SMALL)
    corners = np.divmod(np.asarray(found["classes"])[:, 0, 0], 1000)
    assert set(zip(*map(np.ndarray.tolist, corners), strict=True)) == {(y, x) for y in range(4) for x in range(3)}


SMALL = Geometry((4, 4))


def grid(rows, height, width):
    row, column = np.mgrid[:height, :width]
    return jnp.asarray(np.broadcast_to(1000 * row + column, (rows, height, width)).astype(np.int32))


def test_resized_windows_keep_labels_on_the_image():
    """The image's colours tell coordinates between pixels; a nearest label is at most half a source pixel off."""
    found = apply(jax.random.key(2), painted(), Geometry((20, 28), area=(0.2, 0.6), flip=0.5))
    row, column, mirrored = coordinates(found)
    image = np.asarray(denormalize(found["image"])) * 255 / 4
    inside = (slice(None), slice(2, -2), slice(2, -2))  # at the image's borders a filter has no pixels beyond
    assert np.abs(image[..., 0] - row)[inside].max() < 0.5 + 0.02
    assert np.abs(image[..., 1] - column)[inside].max() < 0.5 + 0.02
    # Without a shift to either side.
    assert abs((image[..., 0] - row)[inside].mean()) < 0.05
    assert abs((image[..., 1] - column)[inside].mean()) < 0.05
    assert 0 < mirrored.mean() < 1


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.data(),
)
def test_nearest_windows_are_plain_numpys(extent, data):
    top, left = data.draw(st.integers(0, 30 - extent[0])), data.draw(st.integers(0, 30 - extent[1]))
    labels = np.arange(900, dtype=np.int32).reshape(1, 30, 30)
    found = nearest(jnp.asarray(labels), jnp.array([[top, left, *extent]]), (7, 11))
    rows, columns = (
        start + np.floor((np.arange(out) + 0.5) * length / out + 1e-9).astype(int)
        for start, length, out in zip((top, left), extent, (7, 11), strict=True)
    )
    np.testing.assert_array_equal(found[0], labels[0][rows][:, columns])


nearest = jax.jit(nearest_windows, static_argnums=2)


def test_unknown_labels_stay_unknown_and_jitter_is_the_images_only():
    batch = painted()
    batch["depth"] = batch["depth"].at[:, ::2].set(0)
    batch["normals"] = batch["normals"].at[:, ::2].set(0)
    plain = apply(jax.random.key(3), batch, Geometry((16, 24), flip=1.0))
    jittered = apply(jax.random.key(3), batch, Geometry((16, 24), flip=1.0, jitter=0.4))
    assert np.abs(plain["image"] - jittered["image"]).max() > 0.1
    for name in geometry.LABELS:
        np.testing.assert_array_equal(plain[name], jittered[name])
    unknown = np.asarray(plain["depth"]) == 0
    assert 0.4 < unknown.mean() < 0.6
    np.testing.assert_array_equal(unknown, (np.asarray(plain["normals"]) == 0).all(-1))


def test_a_row_does_not_depend_on_labels_that_are_absent():
    batch = painted()
    options = Geometry((16, 24), area=(0.3, 0.9), flip=0.5, jitter=0.3)
    whole = apply(jax.random.key(4), batch, options)
    alone = apply(jax.random.key(4), {"image": batch["image"], "depth": batch["depth"]}, options)
    assert alone.keys() == {"image", "depth"}
    for name, array in alone.items():
        np.testing.assert_allclose(array, whole[name], atol=1e-5)


def test_the_middle_is_cut_for_evaluation():
    found = center_crop(painted(), (17, 20))
    row, column, _ = coordinates(found)
    np.testing.assert_array_equal(row[0, :, 0], np.arange(11, 28))
    np.testing.assert_array_equal(column[0, 0], np.arange(18, 38))
    image = np.asarray(denormalize(found["image"])) * 255
    np.testing.assert_allclose(image[..., 0], 4 * row, atol=1e-3)


def test_the_published_view_for_evaluation(parity):
    fixture = np.load(parity / "downstream_transforms.npz")
    for image in sorted({key.split("/")[1] for key in fixture if key.startswith("in/")}):
        given = {name: fixture[f"in/{image}/{name}"] for name in ("rgb", "depth", "mask_valid", "size")}
        side = int(given["size"])
        batch = {
            "image": jnp.asarray(given["rgb"][None]),
            "depth": jnp.asarray(given["depth"][None].astype(np.float32)),
            "classes": jnp.asarray(given["mask_valid"][None].astype(np.int32)),
        }
        found = center_crop(resize_shorter(batch, side), (side, side))
        expected = {name: fixture[f"out/{image}/depth/{name}"] for name in ("rgb", "target", "mask_valid")}
        valid = np.asarray(found["classes"])[0] == 255
        np.testing.assert_array_equal(valid, expected["mask_valid"][0])
        target = np.where(valid, (np.asarray(found["depth"])[0] - 2070.7764) / 777.5723, 0)
        np.testing.assert_allclose(target, expected["target"][0], rtol=1e-5, atol=1e-5)
        levels = np.asarray(denormalize(found["image"]))[0] * 255
        published = np.asarray(denormalize(jnp.asarray(expected["rgb"].transpose(1, 2, 0)[None])))[0] * 255
        assert np.abs(levels - published).max() < 1.01


def test_cells_with_an_invalid_pixel_are_dropped_as_published(parity):
    fixture = np.load(parity / "downstream_losses.npz")
    raw, expected = fixture["in/taskonomy_mask_raw"], fixture["out/taskonomy_mask_valid"]
    found = whole_cells(jnp.asarray(raw == 1))
    np.testing.assert_array_equal(found, expected)
    assert 0 < expected.mean() < (raw == 1).mean()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (0, 8)}, "at least 1×1"),
        ({"flip": 1.5}, "flip=1.5 must be from 0 to 1"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"area": (0.0, 1.0)}, "area=.*above 0"),
        ({"area": (0.5, 0.2)}, "the lower first"),
        ({"area": (0.5, 1.2)}, "up to 1"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**{"crop": (8, 8), **fields})


def test_wrong_batches_are_named():
    batch = painted()
    with pytest.raises(ValueError, match="crop=41×8 is larger than the images of 40×56"):
        augment(jax.random.key(0), batch, Geometry((41, 8)))
    with pytest.raises(ValueError, match="crop=8×57"):
        center_crop(batch, (8, 57))
    with pytest.raises(ValueError, match="batch entry 'normal' must be one of image, depth"):
        augment(jax.random.key(0), {"image": batch["image"], "normal": batch["normals"]}, Geometry((8, 8)))
