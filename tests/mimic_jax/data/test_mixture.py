"""Mixtures, and what is held out of them, against a plain reading of every record."""

import dataclasses
import hashlib
import json
import shutil

import pytest

from data_prep import dataset as writing
from data_prep.merge import merge
from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data import mixture
from mimic_jax.data.mixture import all_examples, hold_out, open_mixture
from mimic_jax.data.pairs import read_pairs
from tests.datasets import make_pair, write_dataset


def make(folder, scenes, shards=1, source="films"):
    """A dataset of `scenes`, of 1 to 3 pairs each or none for "empty", as mine writes it; one that is there grows."""
    settings = {"name": source}
    with writing.opened(folder, settings):
        writing.begin_parts(folder, settings)
        for row, scene in enumerate(scenes):
            count = 0 if scene == "empty" else 1 + row % 3
            pairs = [dataclasses.replace(make_pair(pair), source=source, scene=scene) for pair in range(count)]
            entry = {"source": source, "frames_read": 9, "pairs_tried": 8, "pairs_kept": count}
            writing.write_part(folder, scene, pairs, entry | {"rejected": {}, "problems": {}})
        writing.assemble(
            folder, settings, records.pairs.schema(16), shards, lambda write, todo: [write(shard) for shard in todo]
        )
    return folder


def by_scene(dataset):
    """The places of each scene's records, by reading them all; no scene's name says the source."""
    places = {}
    for place, pair in enumerate(read_pairs(dataset, range(len(dataset)))):
        places.setdefault(f"{pair.source}/{pair.scene}", []).append(place)
    return places


def found_scenes(dataset):
    return {key: [place for span in spans for place in span] for key, spans in mixture.scenes_of(dataset).items()}


def scenes_in(examples):
    return {f"{pair.source}/{pair.scene}" for pair in read_pairs(examples, range(len(examples)))}


@pytest.fixture
def no_full_read(monkeypatch):
    def track(*_):
        raise AssertionError("every record would be read")

    monkeypatch.setattr(mixture, "track", track)


@pytest.mark.usefixtures("no_full_read")
@pytest.mark.parametrize("shards", [1, 3])
def test_scenes_lie_where_the_manifest_says(tmp_path, shards):
    names = ["s3", "s10", "empty", "s1", "s9", "s2"]
    dataset = records.open_dataset(make(tmp_path / "d", names, shards))
    assert dataset.manifest()["scenes"]["empty"]["pairs_kept"] == 0
    assert found_scenes(dataset) == by_scene(dataset)
    assert len(by_scene(dataset)) == 5
    make(tmp_path / "d", ["s10x", "s0"], shards)
    grown = records.open_dataset(tmp_path / "d")
    assert found_scenes(grown) == by_scene(grown)
    assert len(by_scene(grown)) == 7


@pytest.mark.usefixtures("no_full_read")
def test_scenes_of_merged_datasets_have_the_names_of_their_records(tmp_path):
    parts = [
        make(tmp_path / "one", ["a", "b", "films/c"], 2),
        make(tmp_path / "two", ["x", "a", "d", "e", "f"]),
        make(tmp_path / "three", ["a", "phone/a", "phone/b"], source="phone"),
    ]
    manifest = merge(tmp_path / "first", parts[:2], processes=1)
    assert "two/films/a" in manifest["scenes"], "a folder's name is before a scene's"
    merge(tmp_path / "whole", [tmp_path / "first", parts[2]], shards=3, processes=1)
    dataset = records.open_dataset(tmp_path / "whole")
    found = found_scenes(dataset)
    pairs = read_pairs(dataset, range(len(dataset)))
    expected = {}
    for place, pair in enumerate(pairs):
        # Records have the scene's own name; merge puts the source before it where it is not there.
        name = pair.scene if pair.scene in ("films/c", "phone/a", "phone/b") else f"{pair.source}/{pair.scene}"
        expected.setdefault(name, []).append(place)
    assert found == expected
    # Held out of the whole and of the parts alike.
    train, apart = hold_out(open_mixture([tmp_path / "whole", *parts], "f"), 0.3)
    assert not scenes_in(train) & scenes_in(apart)
    assert all(apart.lengths())


def swap_scenes(manifest):
    manifest["scenes"] = dict(reversed(manifest["scenes"].items()))


def miscount(manifest):
    manifest["scenes"]["s1"]["pairs_kept"] += 1


def shift(manifest):
    """One record more for the second scene and one less for the third: each still begins with a record of its own."""
    manifest["scenes"]["s1"]["pairs_kept"] += 1
    manifest["scenes"]["s2"]["pairs_kept"] -= 1


def misname(manifest):
    manifest["settings"]["name"] = "another"


@pytest.mark.parametrize("damage", [swap_scenes, miscount, shift, misname, dict.clear])
def test_where_the_manifest_does_not_agree_every_record_is_read(tmp_path, damage):
    dataset = records.open_dataset(make(tmp_path / "d", [f"s{place}" for place in range(6)]))
    manifest = dataset.manifest()
    damage(manifest)
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    assert found_scenes(dataset) == by_scene(dataset)


def test_without_a_manifest_every_record_is_read(tmp_path, capsys):
    pairs = [make_pair(place, scene=f"s{place % 5}") for place in range(12)]
    write_dataset(tmp_path / "d", pairs, shards=2)
    dataset = records.open_dataset(tmp_path / "d")
    for text in (None, "no json", "[]"):
        (tmp_path / "d" / "manifest.json").unlink(missing_ok=True)
        if text:
            (tmp_path / "d" / "manifest.json").write_text(text)
        assert found_scenes(dataset) == by_scene(dataset)
    assert "reading the scenes of" in capsys.readouterr().out


def test_whole_scenes_are_held_out_and_all_else_is_for_training(tmp_path):
    folders = make(tmp_path / "a", [f"s{place}" for place in range(20)], 2), make(tmp_path / "b", ["x", "y", "z"])
    whole = open_mixture(list(folders), "f")
    train, apart = hold_out(whole, 0.2)
    assert not scenes_in(train) & scenes_in(apart)
    assert scenes_in(train) | scenes_in(apart) == scenes_in(all_examples(whole))
    assert len(train) + len(apart) == len(whole) == len(all_examples(whole))
    # Of each dataset a fifth, and at least one.
    a, b = ({key for key in scenes_in(apart) if (key[6] == "s") == of_a} for of_a in (True, False))
    assert (len(a), len(b)) == (4, 1)
    # By the smallest hashes, now and in every version to come: held-out scenes must not be trained on later.
    hashes = {
        name: hashlib.sha256(f"films/{name}".encode()).hexdigest() for name in (f"s{place}" for place in range(20))
    }
    assert a == {f"films/{name}" for name in sorted(hashes, key=hashes.get)[:4]}
    again = hold_out(open_mixture(list(folders)[::-1], "f"), 0.2)[1]
    assert scenes_in(again) == scenes_in(apart), "the order of the datasets does not matter"


def test_growth_moves_few_scenes(tmp_path):
    names = [f"s{place}" for place in range(40)]
    before, after = (
        scenes_in(hold_out(open_mixture(make(tmp_path / str(count), names[:count]).as_posix(), "f"), 0.25)[1])
        for count in (36, 40)
    )
    # Nine were held out, and ten are now: a new one takes an old one's place only by a smaller hash.
    assert (len(before), len(after)) == (9, 10)
    assert len(before - after) <= len({name for name in names[36:] if f"films/{name}" in after})


def test_a_scene_of_two_datasets_is_held_out_of_both_or_none(tmp_path):
    folders = make(tmp_path / "a", [f"s{place}" for place in range(8)]), make(tmp_path / "b", ["s3", "s4", "s5", "t"])
    for fraction in (0.1, 0.3, 0.5, 0.8, 0.99):
        train, apart = hold_out(open_mixture(list(folders), "f"), fraction)
        assert not scenes_in(train) & scenes_in(apart)
        assert all(train.lengths())
        assert all(apart.lengths())


def test_the_only_scene_of_a_dataset_is_never_held_out(tmp_path):
    make(tmp_path / "one", ["s0"])
    one = open_mixture(str(tmp_path / "one"), "f")
    train, apart = hold_out(one, 0.5)
    assert (len(train), len(apart)) == (len(one), 0)
    # Not of the other dataset that has it either: it is trained on.
    make(tmp_path / "more", ["s0", "s1"])
    train, apart = hold_out(open_mixture(f"{tmp_path}/one,{tmp_path}/more", "f"), 0.5)
    assert scenes_in(apart) == {"films/s1"}
    assert scenes_in(train) == {"films/s0"}


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path):
    whole = open_mixture(str(make(tmp_path / "a", ["s0", "s1"])), "f")
    train, apart = hold_out(whole, 0.0)
    assert (len(train), len(apart)) == (len(whole), 0)
    with pytest.raises(ValueError, match=r"fraction=1\.0"):
        hold_out(whole, 1.0)


def test_a_mixture_is_what_the_config_names(tmp_path):
    a, b = str(make(tmp_path / "a", ["s0"])), str(make(tmp_path / "b", ["s1", "s2"]))
    for spec in (f"{a},{b}", f"{a}, {b}", [a, b], (tmp_path / "a", tmp_path / "b")):
        found = open_mixture(spec, "f")
        assert [dataset.folder for dataset in found.datasets] == [tmp_path / "a", tmp_path / "b"]
        assert found.weights is None
        assert len(found) == 4
    weighted = open_mixture([(a, 1), [b, 0.5]], "f")
    assert weighted.weights == (1.0, 0.5)


def test_fingerprints_tell_mixtures_apart(tmp_path):
    a, b = str(make(tmp_path / "a", ["s0"])), str(make(tmp_path / "b", ["s1", "s2"]))
    shutil.copytree(a, tmp_path / "c")
    specs = [a, b, f"{a},{b}", f"{b},{a}", [(a, 1), (b, 1)], [(a, 1), (b, 2)], [(a, 1)]]
    fingerprints = [open_mixture(spec, "f").fingerprint() for spec in specs]
    assert len(set(fingerprints)) == len(specs)
    assert fingerprints[0] == records.open_dataset(a).fingerprint()
    assert open_mixture(f"{tmp_path}/c,{b}", "f").fingerprint() == fingerprints[2], "where it lies does not matter"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", r"config\.data\.train is not set: give --config\.data\.train=DATASET"),
        ([], r"config\.data\.train is not set"),
        ("A,,B", "an entry is empty"),
        ("A,B,A", "A is given twice"),
        ("A,A/../A", "is given twice"),
        ([("A", 1), "B"], "all datasets a weight"),
        ([("A", 1), ("B",)], "a folder and its weight"),
        (("A", 0.5), r"0\.5 is no folder"),
        ([("A", 1), ("B", 0)], "weight of B is 0; it must be a number above 0"),
        ([("A", 1), ("B", float("nan"))], "must be a number above 0"),
        ([("A", 1), ("B", "2")], "weight of B is '2'"),
        ("A,C", "C: no such dataset folder"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, spec, message):
    make(tmp_path / "A", ["s0"])
    make(tmp_path / "B", ["s1"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_mixture(spec, "config.data.train")
