"""The checkpoints of a run: `checkpoints/STEP/` in its workdir, with parameters, optimizer and position in the data.

Checkpoints are written in the background and appear whole or not at all (Orbax). Each has a checksum of its arrays, and
one that is damaged is set aside in `damaged/`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mimic_jax import hosts
from mimic_jax.checkpoints import (
    AVERAGE,
    DATA,
    PARAMS,
    VARIABLES,
    Damaged,
    checksum,
    failure,
    plain,
    quiet_about_dropped,
    restore,
    shapes_of,
)
from mimic_jax.command import InputError
from mimic_jax.training.run import Run
from mimic_jax.training.state import TrainState
from mimic_jax.workdir import CHECKPOINTS, DAMAGED, saved_steps

OPTIMIZER = "optimizer"
# A scalar that checkpoints had in their optimizer item before it was counted by the host.
_NONFINITE_STEP = "nonfinite_step"

# In messages of what fails to write: the disk is full, a quota or a limit is met, or the folder is read-only.
_CANNOT_WRITE = ("No space left", "Disk quota", "File too large", "Read-only file system", "Permission denied")


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Turns a failure to write the workdir into one line.

    Raises:
      InputError: no room is left in the workdir, or its disk cannot be written for another reason.
    """
    try:
        with quiet_about_dropped():
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
            f"{workdir}: cannot be written ({reason}); mend that, and the same command resumes from "
            + (f"step {whole}" if whole else "the start")
        ) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # The loop asks. Orbax asks too, once a save is done, by the save's step, which JAX would take for the step that
        # this process is at: the processes might agree to stop after one that is over.
        return False


class _Kept:
    """An Orbax preservation policy: the checkpoints of these steps."""

    def __init__(self) -> None:
        self.steps: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of a run: the newest, those of every `keep_every` steps, and the best. Used within `with`."""

    def __init__(self, run: Run):
        settings = run.settings.run
        self._config, self._dataset, self._kept = run.config.to_dict(), run.source.fingerprint, _Kept()
        policies = [ocp.checkpoint_managers.LatestN(settings.keep_checkpoints), self._kept]
        if settings.keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(settings.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,  # of a process that was killed while it wrote
        )
        self._manager = _Manager((run.workdir / CHECKPOINTS).absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # Where another process is lost, a save under way would be waited for in vain.
        if kind is None or issubclass(kind, InputError) or jax.process_count() == 1:
            self._manager.close()

    def newest(self) -> int:
        """The step of the newest checkpoint, whether it is written by now or not; 0 where there is none."""
        return self._manager.latest_step() or 0

    def keep(self, steps: set[int]) -> None:
        """From now on the checkpoints of these steps are kept."""
        self._kept.steps = steps

    def wait(self) -> None:
        """Returns once all are written."""
        self._manager.wait_until_finished()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing the state after `step` updates; returns once the arrays are copied, not written.

        Args:
          step: also the position in the data: the batch of global step `step` comes next.
        """
        position = {"step": step, "dataset": self._dataset, "checksums": _checksums(_items(state))}
        items = {name: ocp.args.StandardSave(plain(item)) for name, item in _items(state).items()}
        items |= {DATA: ocp.args.JsonSave(position), "config": ocp.args.JsonSave(self._config)}
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
        items, position = found
        if position["dataset"] != self._dataset:
            raise InputError(
                f"{folder}: config.data.train has changed since this checkpoint was made; "
                "bring the dataset back as it was, or give another --workdir"
            )
        items[OPTIMIZER].pop(_NONFINITE_STEP, None)
        state = TrainState(
            params=items[PARAMS],
            variables=items.get(VARIABLES, {}),
            ema_params=items.get(AVERAGE),
            **items[OPTIMIZER],
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


def _read(folder: Path, shapes: TrainState) -> tuple[dict[str, Any], dict]:
    """The items of a checkpoint that hold arrays, and its position in the data."""
    wanted = _items(shapes)
    try:
        saved = shapes_of(folder / OPTIMIZER)
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        raise failure(folder, error) from error
    if _NONFINITE_STEP in saved:
        wanted[OPTIMIZER][_NONFINITE_STEP] = shapes.step
    return restore(folder, wanted)


def _items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint that hold arrays."""
    items = {PARAMS: state.params, OPTIMIZER: {name: getattr(state, name) for name in ("step", "opt_state", "skipped")}}
    items |= {AVERAGE: state.ema_params} if state.ema_params is not None else {}
    return items | ({VARIABLES: state.variables} if jax.tree.leaves(state.variables) else {})


def _checksums(items: dict[str, Any]) -> dict[str, int]:
    return {name: int(checksum(item)) for name, item in items.items()}
