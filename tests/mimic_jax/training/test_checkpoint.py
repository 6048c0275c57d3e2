"""The checksum of a checkpoint, against every single change that matters; and disks that take or give nothing."""

import errno
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.command import InputError, TryAgain
from mimic_jax.training.checkpoint import Damaged, checksum, failure, writing

TREE = {
    "kernel": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "bias": np.random.default_rng(1).normal(size=(7,)).astype(np.float32),
    "step": np.array(12, np.int32),
}


def found(tree):
    return int(checksum({name: jnp.asarray(value) for name, value in tree.items()}))


def test_it_is_the_weighted_sum_of_all_bits():
    expected = 0
    for number, name in enumerate(sorted(TREE)):
        bits = np.ravel(TREE[name]).view(np.uint32).astype(object)
        expected += (2 * number + 1) * sum(bit * (2 * place + 1) for place, bit in enumerate(bits))
    assert found(TREE) == expected % 2**32


@given(st.sampled_from(sorted(TREE)), st.integers(0, 59), st.integers(0, 31))
def test_every_flip_of_a_bit_changes_it(name, place, bit):
    changed = TREE[name].copy().reshape(-1)
    changed.view(np.uint32)[place % changed.size] ^= np.uint32(1 << bit)
    assert found(TREE | {name: changed.reshape(TREE[name].shape)}) != found(TREE)


@given(st.permutations(range(7)).filter(lambda order: list(order) != sorted(order)))
def test_numbers_that_change_places_change_it(order):
    assert found(TREE | {"bias": TREE["bias"][list(order)]}) != found(TREE)


def test_a_full_disk_is_told_of_the_workdir_alone(tmp_path, monkeypatch):
    """Of a relative one too, whose files are named by absolute paths; of other files it is not the workdir's fault."""
    monkeypatch.chdir(tmp_path)
    for workdir in (Path("run"), tmp_path / "run"):
        with pytest.raises(InputError, match=f"^{workdir}: cannot be written"), writing(workdir):
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "checkpoints" / "5"))
        with pytest.raises(OSError, match="runs"), writing(workdir):
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "runs" / "x"))


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
