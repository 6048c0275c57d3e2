"""Batches by recording which pairs come, and by their pixels; what is damaged on disk is really so."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import mae_vitl
from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data import pairs
from mimic_jax.data.mixture import all_examples, describe_data, hold_out, open_mixture
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.pairs import pairs_source
from mimic_jax.data.source import batches, describe_rows, read_rows, spread
from mimic_jax.tasks import make_task
from mimic_jax.training.run import open_run
from tests.datasets import make_pair, write_dataset
from tests.mimic_jax.data.numbered import expected, found, numbers, write_numbered


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_batches_hold_the_examples_of_their_steps_in_order(examples, threads):
    assert found(examples, 12, threads=threads) == expected(examples, 0, 12)


@pytest.mark.parametrize(("first_step", "count"), [(0, 2), (7, 2), (1000, 3), (3, 6)])
def test_shares_and_resumed_runs_have_theirs(examples, first_step, count):
    for index in range(count):
        share = found(examples, 5, index, count, first_step=first_step)
        assert share == expected(examples, first_step, 5, index, count)


def test_no_pair_of_a_scene_held_out_is_trained_on(folders):
    train, apart = hold_out(open_mixture([(folders["a"], 1), (folders["c"], 3)], "f"), 0.3)
    scenes = {number // 3 for number in numbers(apart)}
    assert len(scenes) >= 3
    seen = set(itertools.chain.from_iterable(found(train, 100)))
    assert seen == set(numbers(train))
    assert not {number // 3 for number in seen} & scenes


def test_indices_count_through_the_examples(several, training):
    # Dealt to three shards in turn.
    ends = (0, 23), (23, 30), (30, 42)
    stored = [number for first, end in ends for shard in range(3) for number in range(first + shard, end, 3)]
    assert numbers(several) == stored
    assert [pair.frame1 for pair in pairs.read_pairs(several, [41, 0, 9])] == [41, 0, stored[9]]
    left = numbers(training)
    assert left == [number for number in stored if number in left]
    assert 0 < len(left) == len(training) < 35
    assert [pair.frame1 for pair in pairs.read_pairs(training, [3, 3, 0])] == [left[3], left[3], left[0]]
    dataset = several.mixture.datasets[1]
    assert [pair.frame1 for pair in pairs.read_pairs(dataset, [1, 0])] == [26, 23]


def test_a_spread_is_even_and_has_both_ends(several):
    for examples in (several, pairs_source(several, size=(8, 8))):
        assert spread(examples, 5) == [0, 10, 20, 31, 41]
        assert spread(examples, 100) == list(range(42))
        assert spread(examples, 1) == [0]
    nothing = hold_out(several.mixture, 0.0)[1]
    assert spread(nothing, 5) == pairs.read_pairs(nothing, []) == []
    assert read_rows(pairs_source(nothing, size=(8, 8)), [])["view1"].shape == (0, 8, 8, 3)


@pytest.mark.parametrize("index", [-1, 42])
def test_an_index_out_of_range_is_refused(several, index):
    with pytest.raises(IndexError):
        pairs.read_pairs(several, [index])


def describe(examples, indices):
    return describe_rows(pairs_source(examples, size=(8, 8)), indices)


def test_an_example_is_described_by_its_record(folders, training, tmp_path):
    (line,) = describe(training, [len(training) - 1])
    # The last of the last shard of the last dataset that is not held out.
    last = numbers(training)[-1]
    ours = [number for number in range(30, 42) if number % 3 == last % 3]
    shard = Path(folders["c"]) / records.shard_name("train", last % 3, 3)
    assert line == f"tést/s{last // 3}, frames {last} and -1 (record {ours.index(last)} of {shard})"
    groups = write_numbered(tmp_path / "d", 0, 17)
    lines = describe(all_examples(open_mixture(str(tmp_path / "d"), "f")), range(17))
    stored = [(shard, row, pair) for shard, group in enumerate(groups) for row, pair in enumerate(group)]
    for line, (shard, row, pair) in zip(lines, stored, strict=True):
        assert f"frames {pair.frame1} and" in line
        assert line.endswith(f"(record {row} of {tmp_path / 'd' / records.shard_name('train', shard, 3)})")


def test_batches_hold_the_stored_pixels(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed) for seed in range(5)])
    examples = all_examples(open_mixture(str(tmp_path / "d"), "f"))
    batch = next(batches(pairs_source(examples, size=(24, 40)), batch_size=4, seed=0))
    assert batch["view1"].shape == batch["view2"].shape == (4, 24, 40, 3)
    assert batch["view1"].dtype == np.uint8
    # The views are each other's mirror images, and smooth.
    assert np.abs(batch["view1"][:, :, ::-1].astype(int) - batch["view2"]).max() < 12
    (pair,) = pairs.read_pairs(examples, [4])
    np.testing.assert_array_equal(pairs.read_view(pair, "view2", (48, 64)), records.decode_image(pair.view2))


@pytest.fixture
def half(tmp_path):
    """A dataset whose second views are none."""
    made = [dataclasses.replace(make_pair(seed), view2=b"junk") for seed in range(7)]
    write_dataset(tmp_path / "half", made)
    return str(tmp_path / "half")


@pytest.mark.parametrize("workers", [0, 1])
def test_views_that_are_not_asked_for_are_not_decoded(half, workers):
    examples = all_examples(open_mixture(half, "f"))
    options = {"batch_size": 4, "seed": 3, "workers": workers}
    data = batches(pairs_source(examples, size=(48, 64), views=("view1",)), **options)
    for step in range(5):
        batch = next(data)
        assert batch.keys() == {"view1", "index"}
        indices = examples_in_step(step, lengths=(7,), weights=None, batch_size=4, seed=3)
        np.testing.assert_array_equal(batch["index"], indices)
        stored = pairs.read_pairs(examples, indices.tolist())
        np.testing.assert_array_equal(batch["view1"], [records.decode_image(pair.view1) for pair in stored])
    data.close()
    with pytest.raises(InputError, match=r"^view2 of tést/scene .* is damaged"):
        next(batches(pairs_source(examples, size=(48, 64)), **options))


def test_a_step_on_first_views_needs_no_others(half, tmp_path):
    config = mae_vitl.get_config()
    config.model.update({"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "patch_size": 8})
    config.model.update({"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2})
    config.data.update({"train": half, "size": 32, "crop": 32})
    config.update({"batch_size": 4, "steps": 50})
    run = open_run(config, tmp_path / "run", make_task)
    data = run.batches(0)
    batch, key = next(data), jax.random.key(0)
    data.close()
    assert batch.keys() == run.setup.batch.keys() == {"view1"}
    _, metrics = run.setup.step(run.setup.init(key), batch, key)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_view_is_named(broken, workers):
    source = pairs_source(all_examples(open_mixture(broken, "f")), size=(8, 8))
    data = batches(source, batch_size=1, seed=0, workers=workers)
    with pytest.raises(InputError, match=r"^view1 of s/kitchen, frames -1 and -1, is damaged"):
        next(data)


@pytest.fixture
def large(tmp_path):
    """A dataset of one shard that no reader has in its buffer, and the shard."""
    rng, noisy = np.random.default_rng(0), []
    for _ in range(8):
        image = records.encode_image(rng.integers(0, 256, (256, 256, 3), np.uint8))
        noisy.append(records.Pair(image, image, np.zeros(4, np.int16), np.eye(3, dtype=np.float32), 0.5, 9, "s", "c"))
    write_dataset(tmp_path / "large", noisy, shards=1)
    return open_mixture(str(tmp_path / "large"), "f"), tmp_path / "large" / records.shard_name("train", 0, 1)


def cut(shard):
    os.truncate(shard, shard.stat().st_size // 3)


def overwrite(shard):
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(bytes(1000))


@pytest.mark.parametrize("damage", [Path.unlink, cut, overwrite])
@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_that_is_damaged_under_way_is_named(large, damage, opened):
    mixture, shard = large
    data = batches(pairs_source(all_examples(mixture), size=(8, 8)), batch_size=1, seed=0, threads=1)
    if opened:
        next(data)
    damage(shard)
    if opened and damage is Path.unlink:
        next(data)  # a file that is open does not go away
        return
    with pytest.raises(InputError, match=rf"record \d of {shard} cannot be read"):
        list(itertools.islice(data, 24))  # three epochs: some of the first was read ahead


def test_a_missing_shard_is_named_before_anything_is_read(large):
    mixture, shard = large
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard}.*copy it again"):
        pairs_source(all_examples(mixture), size=(8, 8))


def test_a_source_of_pairs_says_what_it_is(folders):
    mixture = open_mixture([(folders["a"], 2), (folders["b"], 1)], "f")
    train, _ = hold_out(mixture, 0.2)
    source = pairs_source(train, size=(24, 40), views=("view2",))
    assert (source.lengths, source.weights) == (tuple(train.lengths()), (2.0, 1.0))
    assert len(source) == len(train)
    assert source.spec == {"view2": jax.ShapeDtypeStruct((24, 40, 3), np.uint8)}
    assert (source.unit, source.fingerprint) == ("pairs", mixture.fingerprint())
    assert source.about == describe_data(mixture)


def test_data_are_described_by_their_manifests(tmp_path):
    for name, manifest in (("a", {"settings": {"name": "films"}, "scenes": {"s0": {}}, "totals": 3}), ("b", None)):
        write_dataset(tmp_path / name, [make_pair(seed) for seed in range(3)])
        (tmp_path / name / records.MANIFEST).unlink(missing_ok=True)
        if manifest:
            (tmp_path / name / records.MANIFEST).write_text(json.dumps(manifest))
    mixture = open_mixture([(tmp_path / "a", 2), (tmp_path / "b", 0.5)], "f")
    first, second = describe_data(mixture, "images")
    fingerprints = [dataset.fingerprint() for dataset in mixture.datasets]
    about = {"folder": str(tmp_path / "a"), "images": 3, "fingerprint": fingerprints[0], "weight": 2.0}
    assert first == about | {"settings": {"name": "films"}, "totals": 3}
    assert second == {"folder": str(tmp_path / "b"), "images": 3, "fingerprint": fingerprints[1], "weight": 0.5}
