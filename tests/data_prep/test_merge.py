"""Datasets joined: every record as it was, and a manifest that adds up."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from data_prep import dataset
from data_prep.merge import merge
from data_prep.settings import Settings
from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.pairs import read_pairs
from tests import commands
from tests.datasets import make_image, make_stereo


def one_by_one(function, items):
    for item in items:
        function(item)


def make(folder, source, scenes, patches=4, shards=2):
    """A dataset with so many pairs in each scene, as mine leaves it; views are random bytes."""
    settings = Settings(source).values()
    with dataset.opened(folder, settings):
        dataset.begin_parts(folder, settings)
        for scene, count in scenes.items():
            rng = np.random.default_rng(len(scene) + count)
            pairs = [
                records.Pair(
                    view1=rng.bytes(300), view2=rng.bytes(300), correspondence=np.arange(patches, dtype=np.int16),
                    homography=np.eye(3, dtype=np.float32), overlap=1.0, inliers=20, source=source, scene=scene,
                    frame1=frame,
                )
                for frame in range(count)
            ]  # fmt: skip
            entry = {
                "input_size": 1, "source": source, "frames_read": 9, "pairs_tried": 8, "pairs_kept": count,
                "rejected": {"no homography": 8 - count}, "problems": {},
            }  # fmt: skip
            dataset.write_part(folder, scene, pairs, entry)
        dataset.assemble(folder, settings, records.pairs.schema(patches), shards, one_by_one)
    return folder


def stored(folder):
    """The records' bytes, in order."""
    opened = records.open_dataset(folder)
    return [records.encode(pair) for pair in read_pairs(opened, list(range(len(opened))))]


def run(*arguments):
    return commands.run(["data_prep.merge", *arguments])


@pytest.fixture
def parts(tmp_path):
    return [
        make(tmp_path / "one", "films", {"a": 3, "b": 0, "c": 5}),
        make(tmp_path / "two", "films", {"a": 2, "d": 4}, shards=3),
        make(tmp_path / "three", "phone", {"a": 1}, shards=1),
    ]


def test_every_record_as_it_was_in_order(parts, tmp_path):
    done = run(tmp_path / "whole", *parts, "--shards=4", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "15 pairs of 6 scenes" in done.stdout
    expected = [record for part in parts for record in stored(part)]
    assert len(expected) == 15
    assert stored(tmp_path / "whole") == expected
    assert len(records.open_dataset(tmp_path / "whole").shards) == 4
    source = tfds.builder_from_directory(tmp_path / "whole").as_data_source("train")
    assert (len(source), source.dataset_info.splits["train"].num_bytes) == (15, sum(map(len, expected)))


def test_the_manifest_adds_up_and_tells_scenes_of_one_name_apart(parts, tmp_path):
    manifest = merge(tmp_path / "whole", parts)
    assert json.loads((tmp_path / "whole" / "manifest.json").read_text()) == manifest
    kept = {name: entry["pairs_kept"] for name, entry in manifest["scenes"].items()}
    assert kept == {"films/a": 3, "films/b": 0, "films/c": 5, "two/films/a": 2, "films/d": 4, "phone/a": 1}
    assert manifest["totals"]["pairs_kept"] == 15
    assert manifest["totals"]["rejected"] == {"no homography": 6 * 8 - 15}
    assert [settings["name"] for settings in manifest["settings"]["merged"]] == ["films", "films", "phone"]


def test_merged_datasets_merge_again(parts, tmp_path):
    merge(tmp_path / "first", parts[:2], shards=1)
    manifest = merge(tmp_path / "second", [tmp_path / "first", parts[2]])
    assert list(manifest["scenes"]) == ["films/a", "films/b", "films/c", "two/films/a", "films/d", "phone/a"]
    assert stored(tmp_path / "second") == [record for part in parts for record in stored(part)]


def test_an_interrupted_merge_is_done_again(parts, tmp_path):
    merge(tmp_path / "expected", parts)
    (tmp_path / "whole" / ".ready").mkdir(parents=True)
    (tmp_path / "whole" / ".ready" / "pairs-train.array_record-00000-of-00001").write_bytes(b"half")
    merge(tmp_path / "whole", parts)
    assert {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()
    }


def test_mistakes_are_one_line(parts, tmp_path):
    one, two, _ = parts
    make(tmp_path / "finer", "films", {"z": 2}, patches=9)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    out = tmp_path / "out"
    for arguments, words in [
        ([out], "IN… missing: give OUT IN…"),
        ([out, tmp_path / "absent"], "absent: no such dataset folder"),
        ([out, one, tmp_path / "other"], "not a finished dataset"),
        ([out, one, tmp_path / "one" / ".." / "one"], "a dataset is given twice"),
        ([out, one, tmp_path / "finer"], "its views have 9 patches"),
        ([one, two], "holds another dataset already"),
        ([tmp_path / "other", one], "holds other things (thesis.tex)"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
        assert not out.exists()
    whole = merge(out, [one])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert merge(out, [one]) == whole
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(InputError, match="holds another dataset already"):
        merge(out, [one, two])


@pytest.mark.parametrize("kind", ["images", "stereo"])
def test_other_kinds_are_joined_too_and_are_shown(kind, tmp_path):
    schema, make_one = {
        "images": (records.images.schema(["depth", "normals", "classes"]), make_image),
        "stereo": (records.stereo.schema(["flow"]), make_stereo),
    }[kind]
    settings = {"name": "films", "records": kind}
    made = {"one": [make_one(seed) for seed in range(4)], "two": [make_one(seed) for seed in range(4, 7)]}
    for folder, examples in made.items():
        with dataset.opened(tmp_path / folder, settings):
            dataset.begin_parts(tmp_path / folder, settings)
            entry = {"source": "films", "frames_read": 9, "tried": 8, "kept": len(examples), "rejected": {"dark": 1},
                     "problems": {}, "input_size": 1}  # fmt: skip
            dataset.write_part(tmp_path / folder, f"room {folder}", examples, entry, schema.encode)
            dataset.assemble(tmp_path / folder, settings, schema, 2, one_by_one, {"classes": ["wall", "floor", "door"]})
    done = run(tmp_path / "whole", tmp_path / "one", tmp_path / "two", "--shards=3")
    assert done.returncode == 0, done.stderr
    assert {"images": "7 images of 2 scenes", "stereo": "7 stereo pairs of 2 scenes"}[kind] in done.stdout
    opened = records.open_dataset(tmp_path / "whole", kinds=[kind])
    assert opened.schema == schema
    assert opened.classes() == ("wall", "floor", "door")
    found = []
    for shard in opened.shards:
        found += ArrayRecordReader(str(shard)).read_all()
    assert found == [schema.encode(each) for examples in made.values() for each in examples]
    assert {name: len(span) for name, span in records.scene_spans(opened.manifest()).items()} == {
        "films/room one": 4,
        "films/room two": 3,
    }
    shown = commands.run(["data_prep.inspect", tmp_path / "whole"], environment={"COLUMNS": "160"}).stdout
    for words in ("wall, floor, door", "3, of 2 to 3", "dark"):
        assert words in shown
    with pytest.raises(InputError, match=f"holds another dataset|a dataset of {kind}, and .* of pairs"):
        merge(tmp_path / "mixed", [make(tmp_path / "pairs", "films", {"a": 3}), tmp_path / "one"])


def test_datasets_with_other_labels_or_classes_are_not_joined(tmp_path):
    for folder, labels, classes in (("a", ["classes"], ["x"]), ("b", ["classes"], ["y"]), ("c", ["depth"], [])):
        schema, settings = records.images.schema(labels), {"name": folder, "records": "images"}
        with dataset.opened(tmp_path / folder, settings):
            dataset.begin_parts(tmp_path / folder, settings)
            entry = {"frames_read": 1, "tried": 1, "kept": 1, "rejected": {}, "problems": {}}
            dataset.write_part(tmp_path / folder, "room", [make_image(0, labels)], entry, schema.encode)
            dataset.assemble(tmp_path / folder, settings, schema, 1, one_by_one, {"classes": classes})
    with pytest.raises(InputError, match="its classes are not those of"):
        merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(InputError, match=r"its records have image, .*depth.* same features"):
        merge(tmp_path / "out", [tmp_path / "a", tmp_path / "c"])
