"""The trained model of a workdir, of any task, for the commands that evaluate it and predict with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import checkpoints
from mimic_jax.command import InputError
from mimic_jax.nn.compute import DEFAULT
from mimic_jax.nn.rngs import make_rngs
from mimic_jax.task import Task
from mimic_jax.tasks import make_task
from mimic_jax.workdir import BEST, CHECKPOINTS, CONFIG, find_model, read_config, saved_steps


@dataclasses.dataclass(frozen=True)
class Trained:
    """config: the run's, resolved. step: of the checkpoint. model: without values. values: as nnx.merge takes them."""

    config: ConfigDict
    task: Task
    step: int
    model: nnx.Module
    values: Any

    def merged(self) -> nnx.Module:
        """The model with its values, in evaluation mode."""
        model = nnx.merge(nnx.split(self.model)[0], self.values)
        model.eval()
        return model


def is_workdir(path: Path) -> bool:
    """Whether a path is a workdir of launch.pretrain or launch.finetune."""
    return (path / CONFIG).is_file()


def load_trained(workdir: Path, step: str | None = None, changes: dict[str, Any] | None = None) -> Trained:
    """The trained model of a workdir, on one device.

    Args:
      step: of the checkpoint; "best" for the best evaluation's; the newest by default.
      changes: fields of the config to change, by their names with dots.

    Raises:
      InputError: the path is no workdir, or its checkpoint cannot be read.
    """
    if not is_workdir(workdir):
        raise InputError(f"{workdir}: has no {CONFIG}; give a workdir of launch.pretrain or launch.finetune")
    config = ConfigDict(read_config(workdir))
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes or {})
    described = find_model(workdir)
    task = make_task(config, described.sizes if described else None)
    number = find_step(workdir, step)
    model = nnx.eval_shape(lambda: task.model(make_rngs(0), DEFAULT))
    folder = workdir / CHECKPOINTS / str(number)
    try:
        params, variables = checkpoints.read_params(folder), checkpoints.read_variables(folder)
    except checkpoints.Damaged as error:
        raise InputError(f"{folder}: this checkpoint is damaged ({error}); give another --step") from error
    wanted = nnx.split(model, nnx.Param, ...)[2]
    variables = checkpoints.with_keys(variables, nnx.to_pure_dict(wanted)) if variables else {}
    flat = nnx.traversals.flatten_mapping(params) | nnx.traversals.flatten_mapping(variables)
    return Trained(config, task, number, model, jax.device_put(nnx.traversals.unflatten_mapping(flat)))


def find_step(workdir: Path, step: str | None) -> int:
    """The step that a flag names: a number, "best", or None for the newest.

    Raises:
      InputError: there is no such checkpoint.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint yet; train the run first")
    if step is None:
        return steps[-1]
    if step == "best":
        try:
            best = next(iter(json.loads((workdir / BEST).read_text()).values()))["step"]
        except (OSError, ValueError, StopIteration, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"--step=best: {workdir / BEST} names no best evaluation; give a number") from error
        if best not in steps:
            raise InputError(
                f"--step=best: the checkpoint of step {best} was not kept (config.run.keep_best); there are {steps}"
            )
        return best
    if not step.isdigit() or int(step) not in steps:
        raise InputError(f"--step={step}: there is no such checkpoint in {workdir / CHECKPOINTS}, only {steps}")
    return int(step)
