"""Which examples are in which step, against Grain's shuffle, repetition and mixture, element by element."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_jax.data.order import examples_at, examples_in_step
from mimic_jax.data.shuffle import round_keys, shuffle


def grain_sequence(lengths, weights, seed):
    """The endless sequence as Grain computes it, one element at a time. Runs of earlier versions were in this order."""
    if weights is None:
        return grain.MapDataset.range(sum(lengths)).shuffle(seed=seed).repeat()
    starts = np.cumsum([0, *lengths]).tolist()
    present = [number for number, length in enumerate(lengths) if length]
    datasets = []
    for number in present:
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        datasets.append(grain.MapDataset.range(starts[number], starts[number + 1]).shuffle(seed=own_seed).repeat())
    return grain.MapDataset.mix(datasets, [weights[number] for number in present])


# Grain needs milliseconds for an element of a short dataset.
few = settings(max_examples=25)
LENGTHS = st.integers(1, 40) | st.integers(10_000, 20_000) | st.integers(60_000, 10_000_000)
WEIGHTS = st.sampled_from([0.3, 1.0, 2.0]) | st.floats(0.01, 100.0)
SEEDS = st.integers(0, 2**31) | st.just(2**32 - 1)


@st.composite
def mixtures(draw, lengths=LENGTHS):
    lengths = draw(st.lists(lengths, min_size=1, max_size=4))
    weights = draw(st.none() | st.tuples(*[WEIGHTS] * len(lengths)))
    return {"lengths": tuple(lengths), "weights": weights, "seed": draw(SEEDS)}


@few
@given(mixtures(), st.integers(1, 9), st.integers(0, 2000) | st.integers(0, 2**33), st.data())
def test_a_step_has_the_examples_that_grain_has(mixture, batch_size, step, data):
    sequence = grain_sequence(**mixture)
    expected = [sequence[step * batch_size + row] for row in range(batch_size)]
    assert examples_in_step(step, batch_size=batch_size, **mixture).tolist() == expected
    rows = data.draw(st.lists(st.integers(0, batch_size - 1), max_size=batch_size))
    some = examples_in_step(step, batch_size=batch_size, rows=np.array(rows, int), **mixture)
    assert some.tolist() == [expected[row] for row in rows]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("bits", [0, 1, 2, 4, 14, 15, 16, 17, 18, 22, 32, 33])
def test_shuffles_are_those_of_grain_at_every_size_of_a_block(bits, seed):
    """Across the lengths at which the cipher's block grows, over the ends of epochs and where the seed overflows."""
    for length in sorted({max(1, 2**bits + more) for more in (-1, 0, 1, 2)}):
        far = np.random.default_rng(length).integers(0, 2**52, 4)
        positions = np.concatenate([[0, 1, length - 1, length, 2 * length - 1, 2 * length], far])
        expected = grain.MapDataset.range(length).shuffle(seed=seed).repeat()
        assert shuffle(positions, length=length, seed=seed).tolist() == [expected[each] for each in positions.tolist()]


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (0, (2963817213, 69796629, 1973464570, 532167439)),
        (12345, (2502221338, 1779028209, 334999418, 3725161141)),
        (2**32 - 1, (3258260622, 2976084991, 227751652, 537413182)),
    ],
)
def test_round_keys_are_those_of_the_standard_library_of_cpp(seed, words):
    """`std::seed_seq{seed}.generate` of four words, as GCC 12.2 printed them."""
    assert round_keys(seed) == words


@pytest.mark.parametrize("weights", [(1e-9, 1.0), (1.0, 3e12, 7.0), (5.0,), (1e300, 1.0)])
def test_weights_of_any_ratio_take_turns_as_in_grain(weights):
    options = {"lengths": (70_000, 80_000, 90_000)[: len(weights)], "weights": weights, "seed": 3}
    sequence = grain_sequence(**options)
    positions = np.concatenate([np.arange(20), np.random.default_rng(0).integers(0, 2**50, 20)])
    assert examples_at(positions, **options).tolist() == [sequence[each] for each in positions.tolist()]


def test_a_dataset_without_examples_has_no_turn():
    options = {"lengths": (0, 70_000, 0, 80_000), "weights": (1.0, 2.0, 3.0, 4.0), "seed": 3}
    sequence = grain_sequence(**options)
    assert examples_at(np.arange(40), **options).tolist() == [sequence[each] for each in range(40)]


def run(first_step, steps, hosts, *, batch_size, **mixture):
    """The batches of steps first_step … first_step + steps − 1, of which each host has every `hosts`-th row."""
    indices = np.zeros((steps, batch_size), int)
    for step in range(steps):
        for host in range(hosts):
            rows = np.arange(host, batch_size, hosts)
            indices[step, rows] = examples_in_step(first_step + step, batch_size=batch_size, rows=rows, **mixture)
    return indices.tolist()


@few
@given(
    mixtures(st.integers(1, 40)),
    st.sampled_from([4, 8, 12]),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 2)), min_size=2, max_size=3),
)
def test_restarts_on_any_numbers_of_hosts_change_nothing(mixture, batch_size, runs):
    """Set and order: masks and crops are drawn by the row in the batch."""
    found = []
    for hosts, steps in runs:  # each a run that is interrupted and resumed elsewhere
        found += run(len(found), steps, hosts, batch_size=batch_size, **mixture)
    plain = examples_at(np.arange(len(found) * batch_size), **mixture).reshape(-1, batch_size)
    assert found == plain.tolist()


@few
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 2**31))
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(lengths, seed):
    count = sum(lengths)
    positions = np.arange(3 * count)
    epochs = examples_at(positions, lengths=lengths, weights=None, seed=seed).reshape(3, count)
    assert (np.sort(epochs) == np.arange(count)).all()
    if count > 9:  # one chance in millions
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
        other = examples_at(positions, lengths=lengths, weights=None, seed=seed + 1)
        assert (other[:count] != epochs[0]).any()


def test_datasets_come_in_the_proportion_of_their_weights():
    drawn = examples_at(np.arange(420), lengths=(23, 7, 12), weights=(2.0, 1.0, 0.5), seed=0)
    shares = np.histogram(drawn, [0, 23, 30, 42])[0] / len(drawn)
    np.testing.assert_allclose(shares, np.array([2, 1, 0.5]) / 3.5, atol=4e-3)
    # Each in epochs of its own.
    for first, last in ((0, 23), (23, 30), (30, 42)):
        own = drawn[(drawn >= first) & (drawn < last)]
        epochs = own[: len(own) // (last - first) * (last - first)].reshape(-1, last - first)
        assert (np.sort(epochs) == np.arange(first, last)).all()
        assert len({tuple(epoch) for epoch in epochs[:4].tolist()}) == 4, "in an order of its own"


def test_weighted_datasets_of_one_length_are_in_orders_of_their_own():
    drawn = examples_at(np.arange(40), lengths=(20, 20), weights=(1.0, 1.0), seed=0)
    assert drawn[drawn < 20].tolist() != (drawn[drawn >= 20] - 20).tolist()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_grain_refuses_is_refused(seed):
    with pytest.raises(ValueError, match="Seed must be"):
        grain_sequence((5,), None, seed)
    with pytest.raises(ValueError, match=f"seed={seed} must be"):
        examples_at(np.arange(3), lengths=(5,), weights=None, seed=seed)


@pytest.mark.parametrize("weights", [None, (2.0, 1.0, 0.5)])
def test_a_step_far_away_is_computed_not_walked_to(weights):
    """Walking there would take hours."""
    options = {"lengths": (2_300_000, 700_000, 1_200_000), "weights": weights, "seed": 0}
    found = examples_in_step(7_000_000, batch_size=4096, **options)
    assert len(found) == 4096
    sequence = grain_sequence(**options)
    rows = [0, 1, 2047, 4095]
    assert found[rows].tolist() == [sequence[7_000_000 * 4096 + row] for row in rows]
