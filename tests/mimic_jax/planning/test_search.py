"""Which candidates are tried, and in which order, by outcomes that closed forms give."""

import dataclasses
import math

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_jax.command import InputError
from mimic_jax.planning.roofline import Roofline
from mimic_jax.planning.search import (
    NOT_NEEDED,
    REMATS,
    TOO_LARGE,
    Candidate,
    Outcome,
    candidates,
    candidates_of,
    flags,
    left_out,
    ranked,
    search,
)
from mimic_jax.training import config as configs
from tests.mimic_jax.planning.small import parts, small


def outcome(needed, room, *times, state=0.0):
    if needed > room:
        return Outcome(False, needed, state, None, 1.0)
    return Outcome(True, needed, state, Roofline(*(times or (2.0, 1.0, 0.5)), 0.1), 1.0)


def state_of(candidate, state):
    """Split over fsdp and tensor."""
    return state / (candidate.fsdp * candidate.tensor)


def memory_of(candidate, state, activations):
    """Of a model whose activations remat and accumulate divide."""
    kept = activations / {"dots": 1, "full": 8}[candidate.remat]
    return state_of(candidate, state) + kept * candidate.tensor / candidate.accumulate


def test_every_mesh_of_a_slice():
    """Sizes multiply to 16; heads of 12 and 16 share the divisors 1, 2 and 4; parts are of whole rows."""
    found = candidates((4, 4), 64, 4)
    meshes = {each.mesh for each in found}
    expected = {
        (data, fsdp, tensor)
        for data in range(1, 17)
        for fsdp in range(1, 17)
        for tensor in (1, 2, 4)
        if data * fsdp * tensor == 16
    }
    assert meshes == expected
    for each in found:
        assert 64 % (each.data * each.fsdp * each.accumulate) == 0
    assert len(found) == len(set(found)) == 2 * (5 * 3 + 4 * 4 + 3 * 5)  # 4, 8 and 16 rows a device


def test_plausible_ones_first():
    """Little computed again, whole sides of the slice; and of those the one that splits most."""
    first = [each.mesh for each in candidates((4, 4), 64, 4)[:5]]
    assert first == [(1, 16, 1), (4, 4, 1), (16, 1, 1), (2, 8, 1), (8, 2, 1)]
    assert {each.remat for each in candidates((4, 4), 64, 4)[:5]} == {"dots"}
    assert [each.tensor for each in candidates((4, 4), 64, 4)] == sorted(
        each.tensor for each in candidates((4, 4), 64, 4)
    )


@pytest.mark.parametrize("heads", [1, 3, 12, 32])
def test_tensor_divides_heads_and_is_8_at_most(heads):
    found = {each.tensor for each in candidates((16, 16), 512, heads)}
    assert found == {each for each in (1, 2, 4, 8) if heads % each == 0}


def run(wanted, room, **model):
    """What the search would do, were the compiler our closed form."""
    known, reasons = {}, {}
    for each in wanted:
        if reason := left_out(each, known, room):
            reasons[each] = reason
        else:
            known[each] = outcome(memory_of(each, **model), room, state=state_of(each, model["state"]))
    return known, reasons


@given(
    room=st.floats(1, 300),
    state=st.floats(0, 300),
    activations=st.floats(1, 3000),
    sides=st.sampled_from([(8,), (4, 2), (2, 2, 2)]),
)
@settings(max_examples=40)
def test_no_candidate_is_left_out_for_a_wrong_reason(room, state, activations, sides):
    model = {"state": state, "activations": activations}
    wanted = candidates(sides, 64, 4)
    known, reasons = run(wanted, room, **model)
    assert known.keys() | reasons.keys() == set(wanted)
    for each, reason in reasons.items():
        if reason == TOO_LARGE:
            assert memory_of(each, **model) > room
        else:
            # One of the same mesh fits, and neither keeps less nor is in more parts.
            assert reason == NOT_NEEDED
            assert any(
                other.mesh == each.mesh
                and memory_of(other, **model) <= room
                and other.accumulate <= each.accumulate
                and REMATS.index(other.remat) <= REMATS.index(each.remat)
                for other in known
            )
    # A mesh on which anything fits has an outcome that fits.
    fitting = {each.mesh for each in wanted if memory_of(each, **model) <= room}
    assert fitting == {each.mesh for each, found in known.items() if found.fits}


def test_few_are_compiled():
    """Where all fit as they are, one a mesh. Where a state fills the room unless it is split, none of its parts."""
    wanted = candidates((4, 4), 512, 4)
    meshes = {each.mesh for each in wanted}
    known, _ = run(wanted, 1000.0, state=64.0, activations=100.0)
    assert sorted(each.mesh for each in known) == sorted(meshes)
    known, reasons = run(wanted, 30.0, state=64.0, activations=10.0)
    on_copies = [each for each in known if each.mesh == (16, 1, 1)]
    # fsdp=2 has 32 of state alone, so neither it nor fsdp=1 is tried in parts.
    assert [(each.accumulate, each.remat) for each in on_copies] in ([(1, "dots")], [(1, "dots"), (1, "full")])
    assert reasons[Candidate(16, 1, 1, "full", 16)] == TOO_LARGE


def test_where_memory_traffic_is_the_limit_more_is_tried():
    """Smaller parts may stay on the chip; where products are the limit, they only cost time."""
    fits = Candidate(1, 16, 1, "dots", 1)
    more = dataclasses.replace(fits, accumulate=2), dataclasses.replace(fits, remat="full")
    for times, reason in (((1.0, 2.0, 0.5), None), ((2.0, 1.0, 0.5), NOT_NEEDED), ((1.0, 0.5, 2.0), NOT_NEEDED)):
        known = {fits: outcome(1.0, 15.0, *times)}
        assert {left_out(each, known, 15.0) for each in more} == {reason}


def test_half_of_what_does_not_fit_in_one_part_is_the_least_in_two():
    """Of 100, of which 4 are state: 52, 28, 16 and 10 in 2, 4, 8 and 16 parts."""
    whole = Candidate(1, 16, 1, "dots", 1)
    known = {whole: outcome(100.0, 15.0, state=4.0)}
    in_parts = {parts: left_out(dataclasses.replace(whole, accumulate=parts), known, 15.0) for parts in (2, 4, 8, 16)}
    assert in_parts == {2: TOO_LARGE, 4: TOO_LARGE, 8: TOO_LARGE, 16: None}
    # Less may be kept, so it says nothing of what keeps less; nor where the memory is not known.
    assert left_out(dataclasses.replace(whole, accumulate=2, remat="full"), known, 16.0) is None
    assert left_out(dataclasses.replace(whole, accumulate=2), known, None) is None


def test_ranked_by_the_longest_time():
    times = {"a": (3.0, 1.0, 1.0), "b": (1.0, 2.0, 2.0), "c": (1.0, 2.0, 0.0)}
    places = {name: Candidate(16 // 2**at, 2**at, 1, "dots", 1) for at, name in enumerate(times)}
    known = {places[name]: outcome(1.0, 2.0, *of) for name, of in times.items()}
    large = Candidate(1, 1, 16, "dots", 1)
    known[large] = outcome(3.0, 2.0)
    assert [each for each, _ in ranked(known)] == [places["c"], places["b"], places["a"], large]
    assert (known[places["a"]].bound.seconds, known[places["a"]].bound.limit) == (3.0, "compute")
    # Where no rates are known, the one that needs least memory.
    without = {
        Candidate(8, 1, 1, "dots", 1): Outcome(True, 9.0, 1.0, None, 1.0),
        Candidate(1, 8, 1, "dots", 1): Outcome(True, 2.0, 1.0, None, 1.0),
    }
    assert [found.needed for _, found in ranked(without)] == [2.0, 9.0]


def test_flags_that_make_a_config_a_candidate():
    given = configs.read(small())
    best = Candidate(2, 4, 1, "full", 2)
    assert flags(best, given) == [
        "--config.run.mesh.fsdp=4",
        "--config.run.remat=full",
        "--config.run.accumulation_steps=2",
    ]
    assert flags(Candidate(8, 1, 1, "dots", 1), given) == []
    changed = best.apply(given).run
    assert (changed.mesh, changed.remat, changed.accumulation_steps) == (
        {"data": 2, "fsdp": 4, "tensor": 1},
        "full",
        2,
    )
    assert given.run.remat == "dots"


def test_candidates_of_a_config(tmp_path):
    """One device, 16 pairs: no mesh but one; parts of 1 to 16."""
    found = candidates_of(*parts(small()), jax.devices()[:1])
    assert {each.mesh for each in found} == {(1, 1, 1)}
    assert len(found) == 2 * (math.log2(16) + 1)
    with pytest.raises(InputError, match=r"config\.run\.mesh=.*needs the axes"):
        candidates_of(*parts(small(run__mesh={"all": -1})), jax.devices()[:1])


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"b": 1}}', '{"a": 1}'])
def test_a_cache_that_is_none(tmp_path, text):
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(InputError, match="--cache="):
        next(search(*parts(small()), {}, [], jax.devices()[:1], "cpu:1", tmp_path / "cache.json", 1), None)
