"""Few-shot selections: each is a part of every larger one, over one or more datasets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.data.images import images_source
from mimic_jax.data.mixture import Examples, all_examples, open_mixture
from mimic_jax.data.source import read_rows
from mimic_jax.data.splits import few
from mimic_jax.data.stored import read_records
from tests.labelled import write_labelled

LENGTHS = (6, 9, 1)
selections = st.tuples(*[st.none() | st.sets(st.integers(0, length - 1)) for length in LENGTHS]).filter(
    lambda chosen: any(each is None or each for each in chosen)
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, length in enumerate(LENGTHS):
        write_labelled(folder / str(number), length, ("depth",), first=100 * number)
    return open_mixture([str(folder / str(number)) for number in range(len(LENGTHS))], "data", "images")


def numbers(examples):
    """(dataset, record) of every example, in order."""
    return [
        (dataset, int(record))
        for dataset, (length, within) in enumerate(zip(LENGTHS, examples.indices, strict=True))
        for record in (range(length) if within is None else within)
    ]


@given(selections, st.integers(0, 1000), st.lists(st.integers(1, 20), min_size=1, max_size=4).map(sorted))
def test_smaller_selections_are_parts_of_larger_ones(mixture, chosen, seed, counts):
    selected = tuple(None if each is None else np.array(sorted(each), np.int64) for each in chosen)
    examples = Examples(mixture, selected)
    everything, before = set(numbers(examples)), set()
    for count in counts:
        found = numbers(few(examples, count, seed))
        assert len(found) == len(few(examples, count, seed)) == min(count, len(everything))
        assert found == sorted(set(found)) == numbers(few(examples, count, seed))
        assert before <= set(found) <= everything
        before = set(found)


def test_the_chosen_records_are_read_from_several_datasets(mixture):
    examples = all_examples(mixture)
    chosen = few(examples, 7, 3)
    frames = [record.frame for record in read_records(chosen, range(7))]
    everything = [*range(6), *range(100, 109), 200]
    assert frames == sorted(everything[index] for index in np.random.default_rng(3).permutation(16)[:7])
    whole = read_rows(images_source(examples, size=(8, 8), labels=("depth",)), range(16))
    part = read_rows(images_source(chosen, size=(8, 8), labels=("depth",)), range(7))
    np.testing.assert_array_equal(part["depth"], whole["depth"][[everything.index(frame) for frame in frames]])


def test_another_seed_chooses_others(mixture):
    chosen = {tuple(map(tuple, few(all_examples(mixture), 5, seed).indices)) for seed in range(8)}
    assert len(chosen) > 6
