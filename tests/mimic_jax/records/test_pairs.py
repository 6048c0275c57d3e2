"""The dataset folder against TensorFlow Datasets itself, the independent reader that the design names."""

import dataclasses
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax import records
from mimic_jax.command import InputError
from tests.datasets import make_pair, write_dataset


def test_tensorflow_datasets_reads_what_we_wrote(tmp_path):
    groups = write_dataset(tmp_path / "d", [make_pair(seed) for seed in range(5)])
    source = tfds.builder_from_directory(tmp_path / "d").as_data_source("train")
    expected = [pair for group in groups for pair in group]
    assert len(source) == 5
    for found, pair in zip(source, expected, strict=True):
        assert found["source"].decode() == "tést"
        assert found["scene"].decode() == pair.scene
        assert found["overlap"] == np.float32(pair.overlap)
        np.testing.assert_array_equal(found["correspondence"], pair.correspondence)
        assert found["correspondence"].dtype == np.int16
        np.testing.assert_array_equal(found["homography"], pair.homography)
        assert (found["frame1"], found["frame2"], found["inliers"]) == (pair.frame1, -1, pair.inliers)
        bgr = cv2.imdecode(np.frombuffer(pair.view1, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(found["view1"].astype(int) - bgr[..., ::-1]).max() <= 2


def test_opening_without_tensorflow_or_jax(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(0), make_pair(1)])
    code = (
        "import sys, mimic_jax, mimic_jax.records as r\n"
        f"assert len(r.open_dataset({str(tmp_path / 'd')!r})) == 2\n"
        "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.integers(0, 10_000), st.text(max_size=20), st.integers(-1, 2**31 - 1))
def test_encode_then_decode_is_the_identity(seed, scene, frame):
    pair = dataclasses.replace(make_pair(seed), scene=scene, frame1=frame)
    found = records.decode(records.encode(pair))
    for field in dataclasses.fields(records.Pair):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(pair, field.name))


def test_image_colours_keep_their_order():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(records.decode_image(records.encode_image(red)).astype(int) - red).max() <= 3


def test_bytes_that_are_no_image_are_refused():
    for junk in (b"", b"not an image"):
        with pytest.raises(ValueError, match="not an image"):
            records.decode_image(junk)


def test_open_dataset_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no such dataset folder"):
        records.open_dataset(tmp_path / "absent")
    with pytest.raises(InputError, match="not a finished dataset"):
        records.open_dataset(tmp_path)

    folder = tmp_path / "d"
    write_dataset(folder, [make_pair(seed) for seed in range(4)])
    assert records.open_dataset(folder).patches == 16
    with pytest.raises(InputError, match="no split 'test'"):
        records.open_dataset(folder, "test")

    shard = folder / records.shard_name("train", 1, 2)
    moved = shard.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"00001-of-00002: this shard"):
        records.open_dataset(folder)
    moved.rename(shard)

    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["homography"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"another schema.*homography"):
        records.open_dataset(folder)
    (folder / "features.json").write_text("{ damaged")
    with pytest.raises(InputError, match="cannot be read"):
        records.open_dataset(folder)
