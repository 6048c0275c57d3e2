"""Sources of arrays of any types: batches read by threads and by processes, against direct reads."""

import dataclasses
import itertools
import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_jax.command import InputError
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.source import Source, batch_spec, batches, describe_rows, read_rows

SPEC = {
    "image": jax.ShapeDtypeStruct((5, 3, 3), np.uint8),
    "depth": jax.ShapeDtypeStruct((5, 3), np.float32),
    "label": jax.ShapeDtypeStruct((), np.int32),
    "valid": jax.ShapeDtypeStruct((7,), np.bool_),
    "half": jax.ShapeDtypeStruct((2,), np.dtype("bfloat16")),
}


def record(index):
    """The record of an example: other numbers for every index, in the types of SPEC."""
    rng = np.random.default_rng(index)
    numbers = {name: rng.integers(0, 200, each.shape) for name, each in SPEC.items()}
    return {
        name: np.asarray(numbers[name] / 7 if name == "depth" else numbers[name]).astype(SPEC[name].dtype)
        for name in SPEC
    }


@dataclasses.dataclass(frozen=True)
class Read:
    """Fills a row with the numbers of `record`."""

    damaged: int | None = None

    def __call__(self, index, row):
        if index == self.damaged:
            raise InputError(f"record {index} is damaged")
        assert {name: (array.shape, array.dtype) for name, array in row.items()} == {
            name: (each.shape, each.dtype) for name, each in SPEC.items()
        }
        for name, array in record(index).items():
            row[name][...] = array


def describe(index):
    return f"record {index}"


def make_source(lengths, weights=None, damaged=None):
    return Source(tuple(lengths), weights, SPEC, Read(damaged), describe, "f", [{} for _ in lengths])


def assert_batch(batch, indices):
    """A batch has the records of `indices`, in the types of the spec, and the indices."""
    expected = batch_spec(SPEC, len(indices))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (each.shape, each.dtype) for name, each in expected.items()
    }
    np.testing.assert_array_equal(batch["index"], indices)
    for row, index in enumerate(indices):
        for name, array in record(index).items():
            np.testing.assert_array_equal(batch[name][row], array)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=3),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 1000),
    st.integers(1, 9),
    st.data(),
)
def test_batches_equal_direct_reads(datasets, weighted, batch_size, first_step, threads, data):
    lengths, weights = zip(*datasets, strict=True)
    source = make_source(lengths, weights if weighted else None)
    rows = data.draw(st.none() | st.lists(st.integers(0, batch_size - 1), unique=True, max_size=batch_size))
    rows = None if rows is None else np.array(rows, int)
    options = {"batch_size": batch_size, "seed": 3}
    read = batches(source, **options, first_step=first_step, rows=rows, threads=threads)
    for step in range(first_step, first_step + 3):
        options |= {"lengths": source.lengths, "weights": source.weights}
        assert_batch(next(read), examples_in_step(step, rows=rows, **options).tolist())
    read.close()


def test_processes_read_the_same():
    weights = 1.0, 2.0
    source = make_source((11, 5), weights)
    options = {"batch_size": 6, "seed": 1, "rows": np.array([4, 0, 5])}
    read = batches(source, first_step=2, workers=2, threads=2, **options)
    for step in range(2, 12):  # more than there are slots
        indices = examples_in_step(step, lengths=(11, 5), weights=weights, **options)
        assert_batch(next(read), indices.tolist())
    read.close()


@given(st.lists(st.integers(0, 40), max_size=9), st.integers(1, 9))
def test_given_examples_are_read_in_their_order(indices, threads):
    assert_batch(read_rows(make_source((30, 11)), indices, threads), indices)


def test_a_batch_is_the_readers_own():
    """Nothing is written to a batch that was handed out."""
    read = batches(make_source((9,)), batch_size=4, seed=0)
    first = next(read)
    kept = {name: array.copy() for name, array in first.items()}
    for _ in range(5):
        next(read)
    read.close()
    assert all((first[name] == kept[name]).all() for name in kept)


@pytest.mark.parametrize("threads", [1, 4])
def test_errors_of_a_record_are_raised(threads):
    source = make_source((9,), damaged=5)
    with pytest.raises(InputError, match="record 5 is damaged"):
        read_rows(source, range(9), threads)
    read = batches(source, batch_size=3, seed=0, threads=threads)
    with pytest.raises(InputError, match="record 5 is damaged"):
        list(itertools.islice(read, 3))  # an epoch


def test_a_source_can_be_pickled():
    source = pickle.loads(pickle.dumps(make_source((4, 3), (1.0, 2.0))))
    assert (len(source), source.weights, source.spec) == (7, (1.0, 2.0), SPEC)
    assert_batch(read_rows(source, [6, 2]), [6, 2])
    assert describe_rows(source, [6, 2]) == ["record 6", "record 2"]


def test_the_name_of_the_indices_is_taken():
    with pytest.raises(ValueError, match="'index' is the name"):
        dataclasses.replace(make_source((4,)), spec={"index": jax.ShapeDtypeStruct((), np.int32)})
