"""Which examples are in which step: by recording ids through the whole pipeline."""

import numpy as np
import pytest

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data import pairs
from tests.datasets import make_pair, write_dataset


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed) for seed in range(23)], shards=3)
    return records.open_dataset(tmp_path / "d")


def ids(dataset, steps, monkeypatch, **options):
    """The ids in each step: views are swapped for images that are filled with the pair's number."""
    with monkeypatch.context() as patch:
        patch.setattr(
            pairs, "read_views", lambda pair, size: {"view1": np.full((size, size, 3), pair.frame1, np.uint8)}
        )
        data = pairs.batches(dataset, size=2, batch_size=6, **options)
        return [next(data)["view1"][:, 0, 0, 0].tolist() for _ in range(steps)]


def test_no_example_is_missed_or_repeated_within_an_epoch(dataset, monkeypatch):
    found = np.concatenate(ids(dataset, 23, monkeypatch, seed=0)).reshape(6, 23)
    for epoch in found:
        assert sorted(epoch) == list(range(23))
    assert len({tuple(epoch) for epoch in found}) == 6, "epochs are to differ in order"


@pytest.mark.parametrize("hosts", [2, 3])
def test_a_step_has_the_same_examples_on_any_number_of_hosts(dataset, monkeypatch, hosts):
    one = ids(dataset, 9, monkeypatch, seed=0)
    shares = [ids(dataset, 9, monkeypatch, seed=0, process_index=host, process_count=hosts) for host in range(hosts)]
    for step in range(9):
        # In order too: masks and crops are drawn by the place in the batch.
        assert [example for share in shares for example in share[step]] == one[step]


def test_resuming_gives_what_would_have_come(dataset, monkeypatch):
    whole = ids(dataset, 12, monkeypatch, seed=0)
    assert ids(dataset, 5, monkeypatch, seed=0, first_step=7) == whole[7:]
    assert ids(dataset, 12, monkeypatch, seed=0, threads=1) == whole
    assert ids(dataset, 12, monkeypatch, seed=1) != whole


def test_batches_hold_the_stored_pixels(dataset):
    batch = next(pairs.batches(dataset, size=32, batch_size=4, seed=0))
    assert batch["view1"].shape == batch["view2"].shape == (4, 32, 32, 3)
    assert batch["view1"].dtype == np.uint8
    # The views are each other's mirror images, and smooth.
    assert np.abs(batch["view1"][:, :, ::-1].astype(int) - batch["view2"]).max() < 12


def test_bad_input_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match="batch_size=5 does not divide over 2"):
        pairs.batches(dataset, size=2, batch_size=5, seed=0, process_count=2)
    broken = records.Pair(b"junk", b"junk", np.zeros(4, np.int16), np.eye(3, dtype=np.float32), 0.5, 9, "s", "kitchen")
    write_dataset(tmp_path / "broken", [broken], shards=1)
    with pytest.raises(InputError, match=r"s/kitchen.*damaged"):
        next(pairs.batches(records.open_dataset(tmp_path / "broken"), size=8, batch_size=1, seed=0))
