"""Every kind of record against TensorFlow Datasets, and what opening a dataset refuses."""

import dataclasses
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.records import dense, images, pairs, stereo
from tests.datasets import make_image, make_pair, make_stereo, write_dataset

EVERY_LABEL = tuple(images.LABELS)
MADE = {
    "pairs": (pairs.schema(16), [make_pair(seed) for seed in range(5)]),
    "images": (images.schema(EVERY_LABEL), [make_image(seed, EVERY_LABEL) for seed in range(5)]),
    "depth only": (images.schema(["depth"]), [make_image(seed, ["depth"]) for seed in range(3)]),
    "stereo": (stereo.schema(["flow", "disparity"]), [make_stereo(seed, ("flow", "disparity")) for seed in range(5)]),
    "flow only": (stereo.schema(["flow"]), [make_stereo(seed) for seed in range(3)]),
}


@pytest.fixture(scope="module", params=MADE)
def written(request, tmp_path_factory):
    """A folder, its schema and its records in order."""
    schema, made = MADE[request.param]
    folder = tmp_path_factory.mktemp("kinds") / request.param
    groups = write_dataset(folder, made, schema=schema)
    return folder, schema, [record for group in groups for record in group]


def equal(found, record):
    for field in dataclasses.fields(record):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(record, field.name))


def test_tensorflow_datasets_reads_every_kind_without_tensorflow(written):
    """Its own decoders, OpenCV's included, give the pixels and numbers that were written."""
    folder, schema, expected = written
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(source) == len(expected)
    for found, record in zip(source, expected, strict=True):
        assert set(found) == set(schema.features)
        for name, feature in schema.features.items():
            value = getattr(record, name)
            if feature.form in ("jpeg", "png"):
                stored = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
                stored = stored[..., ::-1] if stored.ndim == 3 else stored[..., None]
                np.testing.assert_array_equal(found[name], stored)
                assert found[name].dtype == (feature.dtype or "uint8")
            elif feature.form == "text":
                assert found[name].decode() == value
            else:
                np.testing.assert_array_equal(found[name], np.asarray(value, feature.dtype))
    assert "tensorflow" not in sys.modules


def test_a_dataset_is_opened_by_its_kind_and_gives_back_its_records(written):
    from array_record.python.array_record_module import ArrayRecordReader

    folder, schema, expected = written
    opened = records.open_dataset(folder)
    assert opened.schema == schema
    assert opened.kind == schema.kind
    found = []
    for shard in opened.shards:
        reader = ArrayRecordReader(str(shard))
        found += [opened.decode(data) for data in reader.read_all()]
        reader.close()
    assert len(found) == len(opened) == len(expected)
    for one, other in zip(found, expected, strict=True):
        equal(one, other)


def test_a_dataset_of_another_kind_is_refused_in_one_line(written):
    folder, schema, _ = written
    others = [kind for kind in ("pairs", "images", "stereo") if kind != schema.kind]
    assert records.open_dataset(folder, kinds=[schema.kind, *others]).kind == schema.kind
    with pytest.raises(InputError, match=rf"a dataset of {schema.kind}; one of {others[0]} is needed") as error:
        records.open_dataset(folder, kinds=others[:1])
    assert "\n" not in str(error.value)


def test_features_of_another_kind_or_type_are_refused(tmp_path):
    for kind in ("pairs", "images", "stereo"):
        schema, made = MADE[kind]
        write_dataset(tmp_path / kind, made, schema=schema)
    text = (tmp_path / "images" / "features.json").read_text()
    (tmp_path / "stereo" / "features.json").write_text(text)
    with pytest.raises(InputError, match=r"another schema \(missing .*'flow'.*unknown .*'image'.*one of stereo"):
        records.open_dataset(tmp_path / "stereo")
    (tmp_path / "images" / "features.json").write_text(text.replace("uint16", "uint8"))
    with pytest.raises(InputError, match=r"another schema \(types\)"):
        records.open_dataset(tmp_path / "images")
    info = tmp_path / "pairs" / "dataset_info.json"
    info.write_text(info.read_text().replace('"pairs"', '"mnist"'))
    with pytest.raises(InputError, match=r"another schema .'mnist'"):
        records.open_dataset(tmp_path / "pairs")


def test_a_record_must_have_the_features_of_its_dataset():
    record = make_image(0, ["depth"])
    with pytest.raises(ValueError, match="normals of a record of images is missing"):
        images.schema(["depth", "normals"]).encode(record)
    with pytest.raises(ValueError, match="depth of a record of images is not a feature"):
        images.schema([]).encode(record)
    with pytest.raises(ValueError, match=r"keypoints has shape \(1, 17, 3\)"):
        images.schema(["keypoints"], joints=5).encode(make_image(1, ["keypoints"]))
    with pytest.raises(ValueError, match="not a record of images"):
        images.schema(["depth"]).decode(pairs.encode(make_pair(0)))
    with pytest.raises(ValueError, match="not a record of stereo"):
        stereo.schema(["flow"]).decode(b"\xff\xff")
    for wrong in (lambda: images.schema(["colour"]), lambda: stereo.schema([]), lambda: stereo.schema(["depth"])):
        with pytest.raises(ValueError, match="labels"):
            wrong()
    with pytest.raises(ValueError, match="class_bits=12"):
        images.schema(["classes"], class_bits=12)


def test_sixteen_bits_of_classes_and_other_joints_are_read_back(tmp_path):
    schema = images.schema(["classes", "keypoints"], class_bits=16, joints=3)
    classes = np.array([[0, 300], [65534, -1]])
    record = dataclasses.replace(
        make_image(0, []),
        classes=dense.encode_classes(classes, 16),
        keypoints=np.arange(18, dtype=np.float32).reshape(2, 3, 3),
    )
    write_dataset(tmp_path / "d", [record], shards=1, schema=schema)
    assert records.open_dataset(tmp_path / "d").schema == schema
    (found,) = tfds.builder_from_directory(tmp_path / "d").as_data_source("train")
    np.testing.assert_array_equal(found["classes"][..., 0], [[0, 300], [65534, 65535]])
    np.testing.assert_array_equal(dense.decode_classes(record.classes), classes)


def test_pairs_are_stored_as_by_earlier_versions():
    """The digest was taken with the code of version 1.0.0, before there were other kinds."""
    pair = records.Pair(
        view1=b"one", view2=b"two", correspondence=np.array([3, -1, 0, 2], np.int16),
        homography=np.arange(9, dtype=np.float32).reshape(3, 3) / 8, overlap=0.75, inliers=21, source="tést",
        scene="a/b", frame1=7,
    )  # fmt: skip
    assert hashlib.sha256(records.encode(pair)).hexdigest() == GOLDEN
    equal(records.decode(records.encode(pair)), pair)


GOLDEN = "e4c5b6814e3f8a430ca94fabc4c0dc6591da080f2f614a200ad95c31c5ebf479"


def test_every_kind_opens_without_tensorflow_or_jax(written):
    folder, _, expected = written
    code = (
        "import sys, mimic_jax, mimic_jax.records as r\n"
        f"assert len(r.open_dataset({str(folder)!r})) == {len(expected)}\n"
        "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
