"""Which examples are in which step, against plain slicing of the endless sequence, and that against Grain's shuffle."""

from pathlib import Path

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_jax import records
from mimic_jax.data import order
from mimic_jax.data.mixture import Examples, Mixture


def examples_of(lengths, weights=None):
    """All examples of datasets of these lengths; there is nothing to read."""
    datasets = tuple(
        records.Dataset(Path(f"d{number}"), 16, (Path("s"),), (length,)) for number, length in enumerate(lengths)
    )
    return Examples(Mixture(datasets, weights), (None,) * len(datasets))


@st.composite
def mixtures(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    weights = draw(st.none() | st.tuples(*[st.sampled_from([0.3, 1.0, 2.0])] * len(lengths)))
    return lengths, weights


def plain(examples, batch_size, seed, steps):
    """Rows of global steps 0 … steps − 1, cut out of the endless sequence one by one."""
    sequence = order.in_order(examples, seed)
    return [[sequence[step * batch_size + row] for row in range(batch_size)] for step in range(steps)]


def run(examples, first_step, steps, hosts, *, batch_size, seed):
    """What `hosts` hosts together have in steps first_step … first_step + steps − 1, each every so-manieth row."""
    places = np.zeros((steps, batch_size), int)
    for host in range(hosts):
        rows = np.arange(host, batch_size, hosts)
        data = order.rows_of_steps(examples, first_step=first_step, rows=rows, batch_size=batch_size, seed=seed)
        data = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        places[:, rows] = [next(data) for _ in range(steps)]
    return places.tolist()


# Grain takes its time for each place.
few = settings(max_examples=20)


@few
@given(
    mixtures(),
    st.sampled_from([4, 8, 12]),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 2)), min_size=2, max_size=3),
    st.integers(0, 2**31),
)
def test_restarts_on_any_numbers_of_hosts_change_nothing(mixture, batch_size, runs, seed):
    """Set and order: masks and crops are drawn by the row in the batch."""
    examples, found = examples_of(*mixture), []
    for hosts, steps in runs:  # each a run that is interrupted and resumed elsewhere
        found += run(examples, len(found), steps, hosts, batch_size=batch_size, seed=seed)
    assert found == plain(examples, batch_size, seed, len(found))


@few
@given(mixtures(), st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 9))
def test_the_examples_of_any_step_can_be_named(mixture, batch_size, seed, step):
    examples = examples_of(*mixture)
    found = order.examples_in_step(examples, batch_size=batch_size, seed=seed, step=step)
    assert found.tolist() == plain(examples, batch_size, seed, step + 1)[step]


@few
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 2**31))
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(lengths, seed):
    count = sum(lengths)
    sequence = order.in_order(examples_of(lengths), seed)
    epochs = [[sequence[epoch * count + row] for row in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 9:  # one chance in millions
        assert len({tuple(epoch) for epoch in epochs}) == 3
        other = order.in_order(examples_of(lengths), seed + 1)
        assert [other[row] for row in range(count)] != epochs[0]


def test_one_dataset_comes_in_the_order_of_a_plain_shuffle():
    """Known results of training hang on this order."""
    expected = grain.MapDataset.source(range(23)).shuffle(seed=5).repeat()
    found = order.in_order(examples_of([23]), 5)
    assert [found[place] for place in range(72)] == [expected[place] for place in range(72)]


def test_datasets_come_in_the_proportion_of_their_weights():
    sequence = order.in_order(examples_of([23, 7, 12], (2.0, 1.0, 0.5)), 0)
    drawn = np.array([sequence[place] for place in range(420)])
    shares = np.histogram(drawn, [0, 23, 30, 42])[0] / len(drawn)
    np.testing.assert_allclose(shares, np.array([2, 1, 0.5]) / 3.5, atol=4e-3)
    # Each in epochs of its own.
    for first, last in ((0, 23), (23, 30), (30, 42)):
        own = drawn[(drawn >= first) & (drawn < last)]
        epochs = own[: len(own) // (last - first) * (last - first)].reshape(-1, last - first)
        assert (np.sort(epochs) == np.arange(first, last)).all()
        assert len({tuple(epoch) for epoch in epochs[:4]}) == 4, "in an order of its own"


def test_weighted_datasets_of_one_size_are_in_orders_of_their_own():
    sequence = order.in_order(examples_of([20, 20], (1.0, 1.0)), 0)
    drawn = np.array([sequence[place] for place in range(40)])
    assert drawn[drawn < 20].tolist() != (drawn[drawn >= 20] - 20).tolist()


@pytest.mark.parametrize("weights", [None, (2.0, 1.0, 0.5)])
def test_a_step_far_away_is_computed_not_walked_to(weights):
    """Walking there would take hours."""
    examples = examples_of([2_300_000, 700_000, 1_200_000], weights)
    found = order.examples_in_step(examples, batch_size=4096, seed=0, step=7_000_000)
    assert len(found) == 4096
    (resumed,) = run(examples, 7_000_000, 1, 2, batch_size=4096, seed=0)
    assert resumed == found.tolist()
    if weights is None:
        expected = grain.MapDataset.range(4_200_000).shuffle(seed=0).repeat()
        assert found[:9].tolist() == [expected[7_000_000 * 4096 + row] for row in range(9)]
