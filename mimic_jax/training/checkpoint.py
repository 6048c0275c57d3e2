"""The checkpoints of a run: `checkpoints/STEP/` in its workdir, with parameters, optimizer and position in the data.

Checkpoints are written in the background and appear whole or not at all (Orbax). Each has a checksum of its arrays, and
one that is damaged is set aside in `damaged/`.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, PyTree, UInt32
from ml_collections import ConfigDict

from mimic_jax import hosts
from mimic_jax.command import InputError, TryAgain, one_line
from mimic_jax.interop.weights import Weights
from mimic_jax.models.kinds import abstract
from mimic_jax.training.experiment import sizes_of
from mimic_jax.training.metrics import METRICS, read_metrics
from mimic_jax.training.state import TrainState
from mimic_jax.training.workdir import CHECKPOINTS, DAMAGED, DATA, read_config, saved_steps

# In messages of what fails to read, and may be whole: the system, or a host, says no for now.
_LATER = ("os_error_code", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
# Of what may be whole, and is not read by trying again.
_NEVER = ("Permission denied", "structures do not match")
# In messages of what fails to write: the disk is full, a quota or a limit is met, or the folder is read-only.
_CANNOT_WRITE = ("No space left", "Disk quota", "File too large", "Read-only file system", "Permission denied")
# In what Python says of reads and writes that were under way when another failed.
_DROPPED = ("Event loop is closed", "error while reading array index")
_LOGS_OF_DROPPED = ("asyncio", "concurrent.futures")


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Where what happens within cannot write, says so.

    Raises:
      InputError: no room is left in the workdir, or it cannot be written for another reason of its disk's.
    """
    try:
        with _quiet_about_dropped():
            yield
    except InputError:
        raise
    except Exception as error:  # the operating system's, or TensorStore's with its words in it
        reason = next((word for word in _CANNOT_WRITE if word in str(error)), None)
        file = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else workdir
        elsewhere = not Path(file).absolute().is_relative_to(workdir.absolute())
        if reason is None or elsewhere:
            raise
        whole = max(saved_steps(workdir), default=None)
        raise InputError(
            f"{workdir}: cannot be written ({reason}); mend that, and the same command carries on from "
            + (f"step {whole}" if whole else "the start")
        ) from error


@contextlib.contextmanager
def _quiet_about_dropped() -> Iterator[None]:
    """Where a read or a write within fails, no errors of the others under way are printed, until the process ends.

    Orbax and TensorStore drop them when the first has failed; they end at some later time, when Python collects them.
    """
    before, logs = sys.unraisablehook, {log: log.disabled for log in map(logging.getLogger, _LOGS_OF_DROPPED)}

    def hook(raised: Any) -> None:
        if not any(words in str(raised.exc_value) for words in _DROPPED):
            before(raised)

    sys.unraisablehook = hook
    for log in logs:
        log.disabled = True
    yield
    if sys.unraisablehook is hook:  # nothing within has failed
        sys.unraisablehook = before
        for log, disabled in logs.items():
            log.disabled = disabled


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # The loop asks. Orbax asks too, once a save is done, by the save's step, which JAX would take for the step that
        # this process is at: the processes might agree to stop after one that is over.
        return False


class Checkpoints:
    """Of a run: the newest `config.keep_checkpoints`, and those of every `config.keep_every` steps. Within `with`.

    Args:
      config: resolved; each checkpoint has it too.
      dataset: the fingerprint of what the position in a checkpoint is a position in.
    """

    def __init__(self, workdir: Path, config: ConfigDict, dataset: str):
        self._config, self._dataset = config.to_dict(), dataset
        policies = [ocp.checkpoint_managers.LatestN(config.keep_checkpoints)]
        if config.keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,  # of a process that was killed while it wrote
        )
        self._manager = _Manager((workdir / CHECKPOINTS).absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # Where another process is lost, a save under way would be waited for in vain.
        if kind is None or issubclass(kind, InputError) or jax.process_count() == 1:
            self._manager.close()

    def newest(self) -> int:
        """The step of the newest checkpoint, whether it is written by now or not; 0 where there is none."""
        return self._manager.latest_step() or 0

    def wait(self) -> None:
        """Returns once all are written."""
        self._manager.wait_until_finished()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing the state after `step` updates; returns once the arrays are copied, not written.

        Args:
          step: also the position in the data: the batch of global step `step` comes next.
        """
        position = {"step": step, "dataset": self._dataset, "checksums": _checksums(state)}
        items = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(_besides(state)),
            "data": ocp.args.JsonSave(position),
            "config": ocp.args.JsonSave(self._config),
        }
        if state.average is not None:
            items["average"] = ocp.args.StandardSave(state.average)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, shapes: TrainState) -> tuple[TrainState, int] | None:
        """The newest that is whole, and the global step whose batch comes next; None where there is none yet.

        Damaged ones that are newer are moved to `damaged/` in the workdir, with a warning.

        Args:
          shapes: of the state, with the shardings that it shall have, whatever those were that it was saved with.

        Raises:
          InputError: all are damaged, or the newest was made on other data.
          TryAgain: it may be whole, but cannot be read now.
        """
        while step := hosts.as_first(max(self._manager.all_steps(), default=0)):
            folder = Path(self._manager.directory) / str(step)
            found = damage = None
            try:
                found = _read(folder, shapes)
            except Damaged as error:
                damage = str(error)
            if not hosts.all_of(damage is None):  # no process takes part in more before all know
                damage = damage or "as another process finds"
            elif found[1]["checksums"] != _checksums(found[0]):
                damage = "its arrays are not those that were saved"
            if damage is None:
                break
            if hosts.as_first(len(self._manager.all_steps())) == 1:
                raise InputError(
                    f"{folder}: this checkpoint is damaged ({damage}), and there is none before it; restore it from "
                    "elsewhere, or give another --workdir"
                )
            self._set_aside(folder, damage)
        else:
            return None
        state, position = found
        if position["dataset"] != self._dataset:
            raise InputError(
                f"{folder}: config.data.train has changed since this checkpoint was made; "
                "bring the dataset back as it was, or give another --workdir"
            )
        return state, position["step"]

    def _set_aside(self, folder: Path, damage: str) -> None:
        aside = folder.parents[1] / DAMAGED / folder.name
        if hosts.is_first():
            aside.parent.mkdir(exist_ok=True)
            while aside.exists():
                aside = aside.with_name(f"{aside.name}_again")
            folder.rename(aside)
            print(
                f"warning: {folder}: this checkpoint is damaged ({damage}); moved to {aside}, the one before it is used"
            )
        hosts.wait(f"set aside {folder.name}")
        self._manager.reload()


def load_weights(workdir: Path, step: int | None = None) -> Weights:
    """The weights of a workdir: the average over steps, where the run keeps one (config.ema).

    Args:
      step: which checkpoint; the newest by default.

    Raises:
      InputError: the workdir has no config or no such checkpoint, or it is damaged.
      TryAgain: it may be whole, but cannot be read now.
    """
    config = read_config(workdir)
    kind, sizes = config["objective"], sizes_of(config)
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint yet; run `python -m launch.pretrain` on it first")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint of step {step}, only {steps}")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        nnx.to_pure_dict(nnx.state(abstract(kind, sizes))),
    )
    folder, item = workdir / CHECKPOINTS / str(step), "average" if config.get("ema") else "params"
    try:
        found, position = _restore(folder, {item: like})
        if position["checksums"][item] != int(checksum(found[item])):
            raise Damaged("its arrays are not those that were saved")
    except Damaged as error:
        raise InputError(f"{folder}: this checkpoint cannot be read ({error}); give another step") from error
    about = {"origin": str(workdir), "step": step, "config": config} | _told(workdir, step)
    return Weights(kind, sizes, found[item], about)


def _told(workdir: Path, step: int) -> dict[str, Any]:
    """What the workdir says of its data, and the last metrics up to a step."""
    told = {}
    if (workdir / DATA).is_file():
        told["data"] = json.loads((workdir / DATA).read_text())
    if (workdir / METRICS).is_file():
        for line in read_metrics(workdir / METRICS):
            if line["step"] <= step:
                told["evaluation" if "evaluation" in line else "metrics"] = line
    return told


class Damaged(Exception):
    """Says what is wrong with a checkpoint."""


def _read(folder: Path, shapes: TrainState) -> tuple[TrainState, dict]:
    like = {"params": shapes.params, "optimizer": _besides(shapes)}
    if shapes.average is not None:
        like["average"] = shapes.average
    found, position = _restore(folder, like)
    return TrainState(params=found["params"], average=found.get("average"), **found["optimizer"]), position


def _besides(state: TrainState) -> dict[str, Any]:
    """What the optimizer's part of a checkpoint holds."""
    return {name: getattr(state, name) for name in ("step", "opt_state", "skipped", "nonfinite_step")}


def _checksums(state: TrainState) -> dict[str, int]:
    """Of each of the items of a checkpoint that hold arrays."""
    items = {"params": state.params, "optimizer": _besides(state)}
    if state.average is not None:
        items["average"] = state.average
    return {name: int(checksum(item)) for name, item in items.items()}


@jax.jit
def checksum(tree: PyTree) -> UInt32[Array, ""]:
    """A sum over all bits of arrays of 32-bit numbers: the same however they are split over devices.

    Any single number that changes changes it, as all weights are odd; so do, but for a coincidence, numbers that change
    places.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf_number, leaf in enumerate(jax.tree.leaves(tree)):
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, length in enumerate(leaf.shape):
            place = place * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        weighted = jax.lax.bitcast_convert_type(leaf, jnp.uint32) * (2 * place + 1)
        total += np.uint32(2 * leaf_number + 1) * weighted.sum(dtype=jnp.uint32)
    return total


def _restore(folder: Path, like: dict[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Items of a checkpoint by name, as `like` says of their arrays, and its position in the data.

    By Orbax' handlers, one process by itself: its manager would have all wait for one that fails here.
    """
    arrays, folder = ocp.StandardCheckpointHandler(), folder.absolute()
    try:
        for file in ("data/metadata", *(f"{name}/_METADATA" for name in like)):
            (folder / file).stat()  # Orbax calls absent whatever the system does not show
        with _quiet_about_dropped():
            position = ocp.JsonCheckpointHandler().restore(folder / "data")
            position["step"], position["dataset"], position["checksums"]
            return {
                name: arrays.restore(folder / name, args=ocp.args.StandardRestore(tree)) for name, tree in like.items()
            }, position
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        raise failure(folder, error) from error


def failure(folder: Path, error: Exception) -> BaseException:
    """What to raise for an error of reading a checkpoint.

    Returns:
      Damaged only where the system has given what it has; TryAgain where it refuses for now; InputError where it
      always will; or what ends the process, such as an interrupt.
    """
    cause = error
    while cause.__cause__:  # Orbax wraps what TensorStore says, and an interrupt too
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
