"""The checksum of a checkpoint; reading checkpoints that are whole, damaged or refused."""

import errno
import gc
import json
import logging
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.checkpoints import Damaged, checksum, failure, plain, read_params, restore_item, shapes_of, with_keys
from mimic_jax.command import InputError, TryAgain

TREE = {
    "kernel": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "bias": np.random.default_rng(1).normal(size=(7,)).astype(np.float32),
    "step": np.array(12, np.int32),
}


def found(tree):
    return int(checksum({name: jnp.asarray(value) for name, value in tree.items()}))


def weighted_sum(*leaves):
    """Of each leaf's words of 32 bits or fewer, by integers of Python."""
    total = 0
    for number, bits in enumerate(leaves):
        words = (bit * (2 * index + 1) for index, bit in enumerate(np.ravel(bits).astype(object)))
        total += (2 * number + 1) * sum(words)
    return total % 2**32


def test_it_is_the_weighted_sum_of_all_bits():
    assert found(TREE) == weighted_sum(*(np.ravel(TREE[name]).view(np.uint32) for name in sorted(TREE)))


@pytest.mark.parametrize(
    ("type", "words"),
    [
        (ml_dtypes.bfloat16, np.uint16),
        (np.float16, np.uint16),
        (np.int16, np.uint16),
        (np.int8, np.uint8),
        (np.uint8, np.uint8),
        (np.bool_, np.uint8),
        (np.int64, np.uint32),
        (np.float64, np.uint32),
    ],
)
def test_numbers_of_any_width_are_summed(type, words):
    values = np.random.default_rng(2).normal(scale=40, size=(3, 5)) > 0 if type is np.bool_ else None
    values = np.random.default_rng(2).normal(scale=40, size=(3, 5)).astype(type) if values is None else values
    if type is np.int64:
        values[0, 0] = 2**40 + 1  # which 32 bits do not hold
    expected = weighted_sum(TREE["bias"].view(np.uint32), values.reshape(-1).view(words))
    assert int(checksum([TREE["bias"], values])) == expected
    if values.dtype.itemsize < 8:
        assert int(checksum([jnp.asarray(TREE["bias"]), jnp.asarray(values)])) == expected


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_typed_keys_are_summed_by_their_data(implementation):
    keys = jax.random.split(jax.random.key(3, impl=implementation), 4)
    assert int(checksum({"keys": keys})) == weighted_sum(np.asarray(jax.random.key_data(keys)))


@given(st.sampled_from(sorted(TREE)), st.integers(0, 59), st.integers(0, 31))
def test_every_flip_of_a_bit_changes_it(name, place, bit):
    changed = TREE[name].copy().reshape(-1)
    changed.view(np.uint32)[place % changed.size] ^= np.uint32(1 << bit)
    assert found(TREE | {name: changed.reshape(TREE[name].shape)}) != found(TREE)


@given(st.permutations(range(7)).filter(lambda order: list(order) != sorted(order)))
def test_numbers_that_change_places_change_it(order):
    assert found(TREE | {"bias": TREE["bias"][list(order)]}) != found(TREE)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ValueError("OUT_OF_RANGE: Requested byte range [13, 24) is not valid for value of size 10"), Damaged),
        (json.JSONDecodeError("Expecting value", "", 0), Damaged),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "_METADATA"), Damaged),
        (KeyError("checksums"), Damaged),
        (ValueError("UNKNOWN: Failed to read: Input/output error [os_error_code='5']"), TryAgain),
        (ValueError("UNAVAILABLE: the server is away"), TryAgain),
        (OSError(errno.ESTALE, "Stale file handle"), TryAgain),
        (MemoryError(), TryAgain),
        (PermissionError(errno.EACCES, "Permission denied"), InputError),
        (ValueError("PERMISSION_DENIED: Failed to open: Permission denied [os_error_code='13']"), InputError),
    ],
)
def test_what_the_system_refuses_is_not_damage(tmp_path, cause, kind):
    for error in (cause, wrapped(cause)):
        assert type(failure(tmp_path, error)) is kind
        assert type(failure(tmp_path / "absent", error)) is TryAgain


def test_an_interrupt_is_not_damage(tmp_path):
    assert type(failure(tmp_path, wrapped(KeyboardInterrupt()))) is KeyboardInterrupt


def wrapped(cause):
    """As Orbax does with whatever happens while it reads an array."""
    error = Exception("Encountered error while reading array index")
    error.__cause__ = cause
    return error


def save(folder, position=None, **items):
    """A checkpoint as a run writes it, by Orbax itself."""
    checksums = {name: int(checksum(item)) for name, item in items.items()}
    data = {"step": 7, "dataset": "x", "checksums": checksums} | (position or {})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        arrays = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        checkpointer.save(folder, ocp.args.Composite(data=ocp.args.JsonSave(data), **arrays))
    return folder


def params(seed=0):
    """With a list of layers whose indices sort otherwise as text, and numbers of several types."""
    rng = np.random.default_rng(seed)
    layers = {index: {"kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16)} for index in range(12)}
    return {"head": {"layers": layers}, "scale": jnp.asarray(rng.normal(size=5), jnp.float32)}


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_parameters_are_read_without_their_model(tmp_path):
    assert_same(read_params(save(tmp_path / "7", params=params())), params())


def test_the_average_over_steps_is_read_where_there_is_one(tmp_path):
    folder = save(tmp_path / "7", params=params(), average=params(1))
    assert_same(read_params(folder), params(1))
    (folder / "average").rename(tmp_path / "lost")
    with pytest.raises(Damaged, match="_METADATA"):
        read_params(folder)


def test_other_arrays_than_were_saved_are_damage(tmp_path):
    wrong = {"checksums": {"params": int(checksum(params(1)))}}
    with pytest.raises(Damaged, match="not those that were saved"):
        read_params(save(tmp_path / "7", wrong, params=params()))


def test_typed_keys_come_back_as_they_were(tmp_path):
    keys = {"one": jax.random.key(1), "many": jax.random.split(jax.random.key(2, impl="rbg"), 3)}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda key: jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=device), keys)
    assert {leaf.dtype for leaf in jax.tree.leaves(plain(shapes))} == {np.dtype(np.uint32)}
    for restored in (
        with_keys(plain(keys), shapes),
        restore_item(save(tmp_path / "7", params=plain(keys)) / "params", shapes),
    ):
        for name, key in keys.items():
            assert restored[name].dtype == key.dtype
            np.testing.assert_array_equal(jax.random.key_data(restored[name]), jax.random.key_data(key))


def test_a_failed_read_leaves_other_reports_alone(tmp_path, monkeypatch):
    """Python's loggers report other errors, and not the reads that Orbax dropped."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: reported.append(str(raised.exc_value)))
    loggers = [logging.getLogger(name) for name in ("asyncio", "concurrent.futures")]
    handler = logging.Handler()
    handler.emit = lambda record: reported.append(record.getMessage())
    rng = np.random.default_rng(0)
    folder = save(tmp_path / "7", params={f"k{index}": rng.normal(size=(300, 400)) for index in range(12)})
    # The two largest files: all metadata is read, and one array after another fails.
    for path in sorted(folder.rglob("d/*"), key=lambda path: path.stat().st_size)[-2:]:
        path.write_bytes(path.read_bytes()[:10])
    filters = [list(logger.filters) for logger in loggers]
    try:
        for logger in loggers:
            logger.addHandler(handler)
        for _ in range(5):
            with pytest.raises(Damaged):
                read_params(folder)
        gc.collect()
        assert reported == []
        for logger in loggers:
            logger.error("Task exception was never retrieved: orbax dropped it")
            logger.error("the user's own task failed")
        raise_unraisable(ValueError("the user's own finalizer failed"))
        assert reported == ["the user's own task failed"] * 2 + ["the user's own finalizer failed"]
        assert not any(logger.disabled for logger in loggers)
    finally:
        for logger, before in zip(loggers, filters, strict=True):
            logger.removeHandler(handler)
            logger.filters[:] = before


def test_a_read_that_succeeds_leaves_no_filter(tmp_path):
    before = sys.unraisablehook, [list(logging.getLogger(name).filters) for name in ("asyncio", "concurrent.futures")]
    shapes_of(save(tmp_path / "7", params=params()) / "params")
    assert (
        sys.unraisablehook,
        [list(logging.getLogger(name).filters) for name in ("asyncio", "concurrent.futures")],
    ) == before


def raise_unraisable(error):
    class Finalized:
        def __del__(self):
            raise error

    Finalized()
    gc.collect()
