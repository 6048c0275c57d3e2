"""A dataset folder dies at every system call in turn, and loses nothing."""

import dataclasses
import hashlib
import json
import os

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from data_prep import dataset, manifests
from mimic_jax import records
from mimic_jax.command import InputError


def contents(folder):
    """Every file below a folder, by name, as bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Stands for SIGKILL at one system call."""


def pairs(scene, count):
    rng = np.random.default_rng(len(scene))
    for frame in range(count):
        yield records.Pair(
            view1=rng.bytes(2000), view2=rng.bytes(2000), correspondence=np.arange(4, dtype=np.int16),
            homography=np.eye(3, dtype=np.float32), overlap=1.0, inliers=20, source="test", scene=scene, frame1=frame,
        )  # fmt: skip


def add_scenes(output, settings, scenes):
    with dataset.opened(output, settings):
        done = dataset.finished(output)
        missing = [scene for scene in scenes if scene not in done]
        if missing:
            dataset.begin_parts(output, settings)
        for scene in missing:
            entry = {"input_size": 1, "frames_read": 9, "pairs_tried": 8, "rejected": {}, "problems": {}}
            dataset.write_part(output, scene, pairs(scene, len(scene)), {**entry, "pairs_kept": len(scene)})
        if missing or not dataset.is_whole(output, 3):
            dataset.assemble(output, settings, records.pairs.schema(4), 3, one_by_one)


def one_by_one(function, items):
    for item in items:
        function(item)


# Together these are every call that changes what is on disk for good.
@pytest.mark.parametrize("calls", ["os.replace", "os.fsync", "os.unlink", "os.rmdir", "os.mkdir"])
def test_death_at_each_system_call_of_assembly_loses_nothing(tmp_path, monkeypatch, calls):
    settings = {"name": "test"}
    first, then = ["a10", "a9", "b"], ["a9x", "a", "zzzz"]
    add_scenes(tmp_path / "expected", settings, first)
    old = contents(tmp_path / "expected")
    add_scenes(tmp_path / "expected", settings, first + then)
    expected = contents(tmp_path / "expected")
    real = getattr(os, calls.removeprefix("os."))
    deaths = 0
    while True:
        output = tmp_path / f"output{deaths}"
        add_scenes(output, settings, first)
        left = [deaths]

        def mortal(*arguments, left=left, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        # rmtree(ignore_errors=True) swallows OSError, not Killed.
        with monkeypatch.context() as patch:
            patch.setattr(calls, mortal)
            try:
                add_scenes(output, settings, first + then)
            except Killed:
                pass
            else:
                break
        now = {name: data for name, data in contents(output).items() if not name.startswith(".")}
        # A reader finds the old dataset, the new one, or none.
        assert "dataset_info.json" not in now or now in (old, expected), deaths
        add_scenes(output, settings, first + then)
        assert contents(output) == expected, deaths
        assert not [path for path in output.iterdir() if path.name.startswith(".")]
        deaths += 1
    assert deaths >= 1


def test_a_scene_half_written_is_not_there(tmp_path):
    def dying():
        yield from pairs("scene", 2)
        raise Killed

    with dataset.opened(tmp_path, {}):
        dataset.begin_parts(tmp_path, {})
        with pytest.raises(Killed):
            dataset.write_part(tmp_path, "scene", dying(), {"pairs_kept": 3})
        assert dataset.finished(tmp_path) == {}


def test_a_damaged_part_is_named(tmp_path):
    with dataset.opened(tmp_path, {}):
        dataset.begin_parts(tmp_path, {})
        dataset.write_part(tmp_path, "scene", pairs("scene", 2), {"pairs_kept": 2})
        (part,) = (tmp_path / ".parts").glob("*.part")
        for damage in (lambda data: data[:-4], lambda data: data[:-1] + b"X", lambda data: b""):
            whole = part.read_bytes()
            part.write_bytes(damage(whole))
            with pytest.raises(InputError, match=rf"{part.name}: this file is damaged"):
                dataset.finished(tmp_path)
            part.write_bytes(whole)


def test_the_manifest_names_every_version_that_was_used(tmp_path, monkeypatch):
    add_scenes(tmp_path, {}, ["a"])
    monkeypatch.setattr(manifests, "versions", lambda: {"opencv": "4.0", "numpy": "1.0"})
    add_scenes(tmp_path, {}, ["a", "b"])
    assert "4.0" in dataset.read_manifest(tmp_path)["versions"]["opencv"]
    assert cv2.__version__ in dataset.read_manifest(tmp_path)["versions"]["opencv"]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with (
        dataset.opened(tmp_path / "pairs", {}),
        pytest.raises(InputError, match="another run"),
        dataset.opened(tmp_path / "pairs", {}),
    ):
        pass


def test_a_missing_shard_is_not_taken_for_a_smaller_dataset(tmp_path):
    add_scenes(tmp_path, {}, ["aaaa", "bbbb"])
    next(tmp_path.glob("pairs-train*")).unlink()
    with pytest.raises(InputError, match=r"pairs-train.*this shard is missing"):
        add_scenes(tmp_path, {}, ["aaaa", "bbbb"])


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data.replace(data[1000:1100], bytes(100))]
)
def test_a_damaged_shard_is_named_in_one_line(tmp_path, damage):
    add_scenes(tmp_path, {}, ["aaaa", "bbbb"])
    shard = sorted(tmp_path.glob("pairs-train*"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(damage(whole))
    with pytest.raises(InputError, match=rf"{shard.name}: this shard is cut short or damaged; put a copy"):
        add_scenes(tmp_path, {}, ["aaaa", "bbbb", "cc"])
    # The scene just mined waits; with the shard back, nothing is mined twice.
    assert list(dataset.finished(tmp_path)) == ["aaaa", "bbbb", "cc"]
    shard.write_bytes(whole)
    add_scenes(tmp_path, {}, ["aaaa", "bbbb", "cc"])
    assert len(records.open_dataset(tmp_path)) == 10


def test_the_fingerprint_changes_with_the_records(tmp_path):
    """Two runs with equal counts and bytes: the index is the same, the pairs are not."""
    for name, seed in (("one", 1), ("two", 2), ("again", 1)):
        rng = np.random.default_rng(seed)
        examples = [dataclasses.replace(pair, view1=rng.bytes(2000)) for pair in pairs("scene", 6)]
        output = tmp_path / name
        with dataset.opened(output, {}):
            dataset.begin_parts(output, {})
            entry = {"frames_read": 9, "pairs_tried": 8, "pairs_kept": 6, "rejected": {}, "problems": {}}
            dataset.write_part(output, "scene", examples, entry)
            dataset.assemble(output, {}, records.pairs.schema(4), 2, one_by_one)
    info = {name: (tmp_path / name / "dataset_info.json").read_bytes() for name in ("one", "two")}
    assert info["one"] == info["two"]
    one, two, again = (records.open_dataset(tmp_path / name).fingerprint() for name in ("one", "two", "again"))
    assert one != two
    assert one == again


def test_a_dataset_without_digests_keeps_the_fingerprint_of_earlier_versions(tmp_path):
    """Runs on such datasets resume; new scenes give it digests."""
    add_scenes(tmp_path, {}, ["aaaa"])
    with_digests = records.open_dataset(tmp_path).fingerprint()
    (tmp_path / "digests.json").unlink()
    info = (tmp_path / "dataset_info.json").read_bytes()
    assert records.open_dataset(tmp_path).fingerprint() == hashlib.sha256(info).hexdigest() != with_digests
    add_scenes(tmp_path, {}, ["aaaa"])
    assert not (tmp_path / "digests.json").exists(), "a finished dataset is left as it is"
    add_scenes(tmp_path, {}, ["aaaa", "bb"])
    digests = json.loads((tmp_path / "digests.json").read_text())["sha256"]
    assert digests == [digest_of(shard) for shard in records.open_dataset(tmp_path).shards]


def digest_of(shard):
    """Each record's length, eight bytes, little-endian, and its bytes."""
    reader = ArrayRecordReader(str(shard))
    return hashlib.sha256(b"".join(len(each).to_bytes(8, "little") + each for each in reader.read_all())).hexdigest()
