"""Stored images and labels arrive in a batch at another size, in their units, pixel on pixel."""

import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.images import images_source, resize_label
from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.data.source import read_rows
from tests.datasets import make_image, make_pair, write_dataset
from tests.labelled import write_labelled

LABELS = ("depth", "normals", "classes")


def source_of(folder, size, labels=LABELS):
    return images_source(all_examples(open_mixture(str(folder), "data", "images")), size=size, labels=labels)


def stored(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def at_centres(label, size):
    """By fractions: the source pixel in which the centre of each pixel is."""
    rows, columns = (
        [int(Fraction(2 * index + 1, 2) * length / out) for index in range(out)]
        for out, length in zip(size, label.shape[:2], strict=True)
    )
    return label[np.ix_(rows, columns)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("data") / "rooms", 5, LABELS)


@pytest.mark.parametrize("size", [(48, 64), (31, 40), (96, 100)])
def test_labels_are_metres_unit_vectors_and_integers_at_the_centres_of_pixels(folder, size):
    batch = read_rows(source_of(folder, size), [3, 0])
    assert {name: array.dtype for name, array in batch.items() if name != "index"} == {
        "image": np.uint8,
        "depth": np.float32,
        "normals": np.float32,
        "classes": np.int32,
    }
    for row, seed in enumerate([3, 0]):
        record = make_image(seed, LABELS)
        metres = stored(record.depth) * np.float64(record.metres_per_unit)
        np.testing.assert_allclose(batch["depth"][row], at_centres(metres, size), rtol=1e-6)
        classes = stored(record.classes).astype(int)
        np.testing.assert_array_equal(batch["classes"][row], at_centres(np.where(classes == 255, -1, classes), size))
        encoded = stored(record.normals)[..., ::-1].astype(np.float64)
        known = encoded.any(-1, keepdims=True)
        normals = np.where(known, encoded / 127.5 - 1, 0)
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
        np.testing.assert_allclose(batch["normals"][row], at_centres(normals, size), atol=1e-6)
        length = np.linalg.norm(batch["normals"][row], axis=-1)
        np.testing.assert_allclose(length[length > 0], 1, atol=1e-6)
        assert 0 < (length == 0).mean() < 0.3


@pytest.mark.parametrize("size", [(30, 40), (120, 160), (41, 77)])
def test_labels_lie_on_the_image(tmp_path, size):
    """Colours and depth give the same source coordinates, to half a pixel and without a shift."""
    row, column = np.mgrid[:60, :80]
    image = np.stack([4 * row, 3 * column, 128 + 0 * row], -1).astype(np.uint8)
    png, unit = records.dense.encode_depth((1000 * row + column + 1).astype(np.float64), 1.0)
    plain = make_image(0, ("depth",))
    record = dataclasses.replace(plain, image=records.encode_image(image, 100), depth=png, metres_per_unit=unit)
    write_dataset(tmp_path / "ramp", [record], shards=1, schema=records.images.schema(("depth",)))
    batch = read_rows(source_of(tmp_path / "ramp", size, ("depth",)), [0])
    found = np.divmod(batch["depth"][0].astype(np.float64) - 1, 1000)
    shown = batch["image"][0, ..., 0] / 4, batch["image"][0, ..., 1] / 3
    inside = (slice(2, -2), slice(2, -2))
    for label, colour in zip(found, shown, strict=True):
        shift = (label - colour)[inside]
        assert np.abs(shift).max() < 0.5 + 1.0  # JPEG errs by up to 3 levels
        # The centre on the border of two pixels is in the lower right one.
        assert abs(shift.mean()) < (0.6 if size == (30, 40) else 0.2)


@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 40)] * 2))
def test_a_label_of_any_size_is_the_one_at_the_centre(length, size):
    label = np.arange(length[0] * length[1], dtype=np.int32).reshape(length)
    np.testing.assert_array_equal(resize_label(label, size), at_centres(label, size))


def test_an_example_is_described_by_its_scene_and_shard(folder):
    described = source_of(folder, (8, 8)).describe(2)
    assert "tést/room 1, frame 2" in described
    assert "record 2 of" in described


def test_a_label_that_a_dataset_lacks_is_named(tmp_path, folder):
    write_labelled(tmp_path / "depths", 2, ("depth",))
    with pytest.raises(InputError, match=r"depths: its images have no normals; give a dataset with that label"):
        source_of(f"{folder},{tmp_path / 'depths'}", (8, 8), ("normals",))


@pytest.mark.parametrize("label", [*LABELS, "image"])
def test_a_damaged_label_is_named_in_one_line(tmp_path, label):
    images = [make_image(seed, LABELS) for seed in range(2)]
    images[1] = dataclasses.replace(images[1], **{label: b"junk"})
    write_dataset(tmp_path / "rooms", images, shards=1, schema=records.images.schema(LABELS))
    source = source_of(tmp_path / "rooms", (8, 8))
    read_rows(source, [0])
    with pytest.raises(InputError, match=rf"^{label} of tést/room, frame 1 is damaged") as caught:
        read_rows(source, [1])
    assert "\n" not in str(caught.value)


def test_pairs_are_refused_where_images_are_needed(tmp_path):
    write_dataset(tmp_path / "pairs", [make_pair(0)], shards=1)
    with pytest.raises(InputError, match=r"pairs.*images") as caught:
        source_of(tmp_path / "pairs", (8, 8))
    assert "\n" not in str(caught.value)
