"""Reads and verifies Orbax checkpoints: a folder of items, each a tree of arrays, and their checksums in `data`."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree, UInt32

from mimic_jax.command import InputError, TryAgain, one_line

# Items of a checkpoint: the parameters; their average over steps, where the run keeps one; what the model has besides,
# if anything; JSON with the checksums.
PARAMS = "params"
AVERAGE = "average"
VARIABLES = "variables"
DATA = "data"

# Words in the message of a read that failed although the file may be whole: the system or a host refuses for now.
_LATER = ("os_error_code", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
# Words where the file may be whole and another try would not help.
_NEVER = ("Permission denied", "structures do not match")
# Words in Python's report of a read or write that Orbax dropped because another one had failed.
_DROPPED = ("event loop is closed", "error while reading array index", "orbax", "tensorstore", "ocdbt")
_LOGGERS_OF_DROPPED = ("asyncio", "concurrent.futures")


class Damaged(Exception):
    """Says what is wrong with a checkpoint."""


def checksum(tree: PyTree) -> UInt32[Array, ""]:
    """A sum over all bits of a tree's arrays, which does not depend on how they are sharded.

    All weights are odd, so a change of any single number changes the sum. So does an exchange of numbers, but for a
    coincidence. Leaves have 8, 16, 32 or 64 bits, or are booleans or typed PRNG keys.
    """
    return _checksum(jax.tree.map(_words_of_wide, tree))


def plain(tree: PyTree) -> PyTree:
    """The tree with the data of typed PRNG keys (uint32) in place of the keys: what checkpoints hold.

    Args:
      tree: arrays, or their shapes with shardings.
    """
    return jax.tree.map(_plain, tree)


def with_keys(tree: PyTree, shapes: PyTree) -> PyTree:
    """The tree with typed PRNG keys again; the inverse of `plain`.

    Args:
      shapes: like the tree before `plain`; its keys say the implementation.
    """
    return jax.tree.map(
        lambda shape, leaf: jax.random.wrap_key_data(leaf, impl=_implementation(shape)) if _is_key(shape) else leaf,
        shapes,
        tree,
    )


def shapes_of(item: Path, sharding: jax.sharding.Sharding | None = None) -> PyTree:
    """Shapes and types of the arrays of an item, from its own metadata.

    Raises:
      Exception: Orbax's or the system's, see `failure`.
    """
    (item / "_METADATA").stat()  # Orbax reports a file as absent whatever the system's reason is
    with quiet_about_dropped():
        found = ocp.StandardCheckpointHandler().metadata(item.absolute()).tree
    return _with_indices(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), found)
    )


def restore_item(item: Path, shapes: PyTree) -> PyTree:
    """The arrays of an item: jax.Array for shapes with shardings, NumPy's for NumPy's.

    One process reads for itself: Orbax's manager would make all processes wait for one that fails here.

    Raises:
      Exception: Orbax's or the system's, see `failure`.
    """
    (item / "_METADATA").stat()
    with quiet_about_dropped():
        args = ocp.args.StandardRestore(plain(shapes))
        return with_keys(ocp.StandardCheckpointHandler().restore(item.absolute(), args=args), shapes)


def restore(folder: Path, shapes: dict[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Items of a checkpoint by name, and its position in the data, with the checksums. Nothing is verified.

    Raises:
      Damaged, TryAgain, InputError: the checkpoint cannot be read, see `failure`.
    """
    try:
        position = _read_position(folder)
        return {name: restore_item(folder / name, each) for name, each in shapes.items()}, position
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        raise failure(folder, error) from error


def read_params(folder: Path) -> PyTree:
    """All parameters of a checkpoint, verified: their average over steps, where the run keeps one.

    Shapes and types are the checkpoint's own, so any model's checkpoint can be read. The arrays are on one device.

    Raises:
      Damaged, TryAgain, InputError: the checkpoint cannot be read, see `failure`; or Damaged: its checksum differs.
    """
    return _read_verified(folder, (AVERAGE, PARAMS))


def read_variables(folder: Path) -> PyTree:
    """What a checkpoint holds of a model besides parameters, such as running statistics; an empty dict for nothing.

    Typed PRNG keys come as their data (uint32). Raises as `read_params` does.
    """
    return _read_verified(folder, (VARIABLES,))


def _read_verified(folder: Path, items: Sequence[str]) -> PyTree:
    """The first of some items that the checkpoint has, on one device; an empty dict where it has none of them."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        checksums = _read_position(folder)["checksums"]
        item = next((name for name in items if name in checksums), None)
        if item is None:
            return {}
        found = restore_item(folder / item, shapes_of(folder / item, device))
        expected = checksums[item]
    except Exception as error:
        raise failure(folder, error) from error
    if expected != int(checksum(found)):
        raise Damaged("its arrays are not those that were saved")
    return found


def failure(folder: Path, error: Exception) -> BaseException:
    """What to raise for an error of reading a checkpoint.

    Returns:
      Damaged only where the system has delivered the files; TryAgain where it refuses for now; InputError where it
      always will; or what ends the process, such as an interrupt.
    """
    cause = error
    while cause.__cause__:  # Orbax wraps TensorStore's errors, and an interrupt too
        cause = cause.__cause__
    if not isinstance(cause, Exception):
        return cause
    if not os.path.exists(folder):
        return TryAgain(f"{folder}: this checkpoint has gone meanwhile; run again")
    text = str(cause)
    reason = one_line(cause).partition(" [tensorstore_spec")[0]  # which comes last, and is long
    said = f"{type(cause).__name__}: {reason if len(reason) <= 300 else '… ' + reason[-300:]}"
    refused = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    unchanged = (
        f"{folder}: this checkpoint cannot be read ({said}); nothing of it was changed. Run again once it can, or move "
        "it elsewhere: then the one before it, if there is one, is used"
    )
    if any(words in text for words in _NEVER):
        return InputError(unchanged)
    if refused or isinstance(cause, MemoryError) or any(words in text for words in _LATER):
        return TryAgain(unchanged)
    return Damaged(said)


@contextlib.contextmanager
def quiet_about_dropped() -> Iterator[None]:
    """If a read or write inside fails, Python does not report the others that were under way.

    Orbax and TensorStore drop them, and Python reports them when it collects them, at any later time. So the filters
    stay in place after a failure. They remove only reports that name Orbax or TensorStore, or a closed event loop.
    """
    hook, outermost = sys.unraisablehook, not isinstance(sys.unraisablehook, _Hook)
    if outermost:
        hook = sys.unraisablehook = _Hook(sys.unraisablehook)
        for name in _LOGGERS_OF_DROPPED:
            logging.getLogger(name).addFilter(_is_wanted)
    try:
        yield
    except BaseException:
        hook.failed = True
        raise
    if outermost and not hook.failed:
        for name in _LOGGERS_OF_DROPPED:
            logging.getLogger(name).removeFilter(_is_wanted)
        if sys.unraisablehook is hook:
            sys.unraisablehook = hook.before


class _Hook:
    """A `sys.unraisablehook` without the reports of dropped reads. failed: whether there may be such."""

    def __init__(self, before: Any):
        self.before, self.failed = before, False

    def __call__(self, raised: Any) -> None:
        if not _is_dropped(str(raised.exc_value)):
            self.before(raised)


def _is_wanted(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not _is_dropped(f"{record.getMessage()} {error!r}")


def _is_dropped(report: str) -> bool:
    return any(words in report.lower() for words in _DROPPED)


def _read_position(folder: Path) -> dict[str, Any]:
    (folder / DATA / "metadata").stat()
    position = ocp.JsonCheckpointHandler().restore((folder / DATA).absolute())
    position["step"], position["dataset"], position["checksums"]
    return position


def _with_indices(tree: PyTree) -> PyTree:
    """The tree with the integer keys that a list of layers has; Orbax's metadata has text, which sorts otherwise."""
    if not isinstance(tree, dict):
        return tree
    indexed = tree and all(key.isdigit() for key in tree)
    return {int(key) if indexed else key: _with_indices(value) for key, value in tree.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _implementation(shape: Any) -> Any:
    """The implementation of a key's shape, which `jax.random.key_impl` tells of arrays only."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), shape)
    return found[0]


def _words_of_wide(leaf: Any) -> Any:
    """NumPy's numbers of 64 bits as pairs of 32: JAX would round them to 32 bits."""
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.itemsize == 8:
        return np.ascontiguousarray(leaf).reshape(-1).view(np.uint32).reshape(*leaf.shape, 2)
    return leaf


@jax.jit
def _checksum(tree: PyTree) -> UInt32[Array, ""]:
    total = jnp.zeros((), jnp.uint32)
    for leaf_number, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(leaf)
        index = jnp.zeros(words.shape, jnp.uint32)
        for axis, length in enumerate(words.shape):
            index = index * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        total += np.uint32(2 * leaf_number + 1) * (words * (2 * index + 1)).sum(dtype=jnp.uint32)
    return total


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of each number; 64 bits are two words on a last axis."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, narrow).astype(jnp.uint32)
