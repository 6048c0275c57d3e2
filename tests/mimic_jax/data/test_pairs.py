"""Which examples are in which step: by recording ids through the whole pipeline."""

import itertools

import grain
import numpy as np
import pytest

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data import pairs
from mimic_jax.data.mixture import all_examples, hold_out, open_mixture
from tests.datasets import make_pair, write_dataset

SIZES = {"a": 23, "b": 7, "c": 12}


@pytest.fixture
def folders(tmp_path):
    """Datasets of 23, 7 and 12 pairs, numbered through, three of them a scene."""
    first = 0
    for name, count in SIZES.items():
        numbered = [make_pair(seed, scene=f"s{seed // 3}") for seed in range(first, first + count)]
        write_dataset(tmp_path / name, numbered, shards=3)
        first += count
    return {name: str(tmp_path / name) for name in SIZES}


@pytest.fixture
def one(folders):
    return all_examples(open_mixture(folders["a"], "f"))


@pytest.fixture
def several(folders):
    return all_examples(open_mixture(list(folders.values()), "f"))


@pytest.fixture
def weighted(folders):
    return all_examples(open_mixture([(folders["a"], 2), (folders["b"], 1), (folders["c"], 0.5)], "f"))


@pytest.fixture
def training(folders):
    """What is left of two datasets when scenes are held out."""
    return hold_out(open_mixture(f"{folders['a']},{folders['c']}", "f"), 0.3)[0]


@pytest.fixture(params=["one", "several", "weighted", "training"])
def examples(request):
    return request.getfixturevalue(request.param)


def ids(examples, steps, monkeypatch, **options):
    """The ids in each step: views are swapped for images that are filled with the pair's number."""
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "read_views", lambda pair, size: {"view1": np.full((*size, 3), pair.frame1, np.uint8)})
        data = pairs.batches(examples, size=(2, 1), batch_size=6, **options)
        return [next(data)["view1"][:, 0, 0, 0].tolist() for _ in range(steps)]


def numbers(examples):
    return [pair.frame1 for pair in pairs.read_pairs(examples, range(len(examples)))]


@pytest.mark.parametrize("examples", ["one", "several", "training"], indirect=True)
def test_no_example_is_missed_or_repeated_within_an_epoch(examples, monkeypatch):
    found = np.concatenate(ids(examples, len(examples), monkeypatch, seed=0)).reshape(6, len(examples))
    for epoch in found:
        assert sorted(epoch) == sorted(numbers(examples))
    assert len({tuple(epoch) for epoch in found}) == 6, "epochs are to differ in order"


def test_one_dataset_comes_in_the_order_of_a_plain_shuffle(one, monkeypatch):
    """Known results of training hang on this order."""
    expected = grain.MapDataset.source(numbers(one)).shuffle(seed=5).repeat()
    found = itertools.chain.from_iterable(ids(one, 12, monkeypatch, seed=5))
    assert list(found) == [expected[place] for place in range(72)]


def test_no_pair_of_a_scene_held_out_is_trained_on(folders, monkeypatch):
    train, apart = hold_out(open_mixture([(folders["a"], 1), (folders["c"], 3)], "f"), 0.3)
    scenes = {number // 3 for number in numbers(apart)}
    assert len(scenes) >= 3
    found = set(itertools.chain.from_iterable(ids(train, 100, monkeypatch, seed=0)))
    assert found == set(numbers(train))
    assert not {number // 3 for number in found} & scenes


def test_datasets_come_in_the_proportion_of_their_weights(weighted, monkeypatch):
    drawn = np.concatenate(ids(weighted, 140, monkeypatch, seed=0))
    shares = np.histogram(drawn, [0, 23, 30, 42])[0] / len(drawn)
    np.testing.assert_allclose(shares, np.array([2, 1, 0.5]) / 3.5, atol=2e-3)
    # Each in epochs of its own.
    for first, last in ((0, 23), (23, 30), (30, 42)):
        own = drawn[(drawn >= first) & (drawn < last)]
        epochs = own[: len(own) // (last - first) * (last - first)].reshape(-1, last - first)
        assert (np.sort(epochs) == np.arange(first, last)).all()
        assert len({tuple(epoch) for epoch in epochs[:10]}) == 10, "in an order of its own"


def test_weighted_datasets_of_one_size_are_in_orders_of_their_own(tmp_path, monkeypatch):
    for name, first in (("a", 0), ("b", 20)):
        write_dataset(tmp_path / name, [make_pair(seed) for seed in range(first, first + 20)])
    both = all_examples(open_mixture([(tmp_path / "a", 1), (tmp_path / "b", 1)], "f"))
    drawn = np.concatenate(ids(both, 6, monkeypatch, seed=0))
    assert drawn[drawn < 20].tolist() != (drawn[drawn >= 20] - 20).tolist()


@pytest.mark.parametrize("hosts", [2, 3])
def test_a_step_has_the_same_examples_on_any_number_of_hosts(examples, monkeypatch, hosts):
    one = ids(examples, 9, monkeypatch, seed=0)
    shares = [ids(examples, 9, monkeypatch, seed=0, process_index=host, process_count=hosts) for host in range(hosts)]
    for step in range(9):
        # In order too: masks and crops are drawn by the place in the batch.
        assert [example for share in shares for example in share[step]] == one[step]


def test_resuming_gives_what_would_have_come(examples, monkeypatch):
    whole = ids(examples, 12, monkeypatch, seed=0)
    assert ids(examples, 5, monkeypatch, seed=0, first_step=7) == whole[7:]
    assert ids(examples, 12, monkeypatch, seed=0, threads=1) == whole
    assert ids(examples, 12, monkeypatch, seed=1) != whole


def test_a_run_of_millions_of_steps_is_resumed_by_computing_its_place(weighted, several, monkeypatch):
    """Reading up to there would take hours. The reference is Grain's own shuffle, epochs later."""
    found = ids(several, 1, monkeypatch, seed=0, first_step=7_000_000)
    expected = grain.MapDataset.source(numbers(several)).shuffle(seed=0).repeat()
    assert found == [[expected[42_000_000 + place] for place in range(6)]]
    assert len(ids(weighted, 1, monkeypatch, seed=0, first_step=7_000_000)[0]) == 6


def test_places_count_through_the_examples(several, training):
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
    assert pairs.spread(several, 5) == [0, 10, 20, 31, 41]
    assert pairs.spread(several, 100) == list(range(42))
    assert pairs.spread(several, 1) == [0]
    nothing = hold_out(several.mixture, 0.0)[1]
    assert pairs.spread(nothing, 5) == pairs.read_pairs(nothing, []) == []


def test_batches_hold_the_stored_pixels(one):
    batch = next(pairs.batches(one, size=(24, 40), batch_size=4, seed=0))
    assert batch["view1"].shape == batch["view2"].shape == (4, 24, 40, 3)
    assert batch["view1"].dtype == np.uint8
    # The views are each other's mirror images, and smooth.
    assert np.abs(batch["view1"][:, :, ::-1].astype(int) - batch["view2"]).max() < 12


def test_views_of_the_right_size_are_as_stored(one):
    (pair,) = pairs.read_pairs(one, [4])
    np.testing.assert_array_equal(pairs.read_view(pair, "view2", (48, 64)), records.decode_image(pair.view2))


def test_bad_input_is_named(one, tmp_path):
    with pytest.raises(InputError, match="batch_size=5 does not divide over 2"):
        pairs.batches(one, size=(2, 2), batch_size=5, seed=0, process_count=2)
    broken = records.Pair(b"junk", b"junk", np.zeros(4, np.int16), np.eye(3, dtype=np.float32), 0.5, 9, "s", "kitchen")
    write_dataset(tmp_path / "broken", [broken], shards=1)
    examples = all_examples(open_mixture(str(tmp_path / "broken"), "f"))
    with pytest.raises(InputError, match=r"s/kitchen.*damaged"):
        next(pairs.batches(examples, size=(8, 8), batch_size=1, seed=0))
