"""The checkpoints of a run: what is saved comes back, and a full disk is reported in one line."""

import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.command import InputError
from mimic_jax.training.checkpoint import Checkpoints, writing
from mimic_jax.training.run import open_run
from mimic_jax.training.state import TrainState
from tests.toy_task import make_toy, toy_config


def run_of(workdir):
    return open_run(toy_config(run__keep_checkpoints=2), workdir, make_toy)


def state(average):
    rng = np.random.default_rng(0)
    params = {
        "half": jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16),
        "single": jnp.asarray(rng.normal(size=4), jnp.float32),
        "dropout": {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2)},
    }
    moments = ({"half": jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16)}, {"mask": jnp.array([True, False])})
    number = jnp.asarray(7, jnp.int32)
    variables = {"count": jnp.asarray(3, jnp.uint32), "stream": jax.random.key(5)}
    return TrainState(number, params, variables, moments, params if average else None, number)


@pytest.mark.parametrize("average", [False, True])
def test_numbers_of_16_bits_and_typed_keys_come_back(tmp_path, average):
    saved = state(average)
    with Checkpoints(run_of(tmp_path)) as checkpoints:
        checkpoints.save(7, saved)
        checkpoints.wait()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), saved)
    with Checkpoints(run_of(tmp_path)) as checkpoints:
        restored, step = checkpoints.restore(shapes)
    assert step == 7
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert one.dtype == other.dtype
        is_key = jnp.issubdtype(one.dtype, jax.dtypes.prng_key)
        one, other = (jax.random.key_data(each) if is_key else each for each in (one, other))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_full_disk_is_told_of_the_workdir_alone(tmp_path, monkeypatch):
    """Of a relative one too, whose files are named by absolute paths; of other files it is not the workdir's fault."""
    monkeypatch.chdir(tmp_path)
    for workdir in (Path("run"), tmp_path / "run"):
        with pytest.raises(InputError, match=f"^{workdir}: cannot be written"), writing(workdir):
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "checkpoints" / "5"))
        with pytest.raises(OSError, match="runs"), writing(workdir):
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "runs" / "x"))
