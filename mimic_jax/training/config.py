"""A config's sections that every task has, read and checked; lengths in steps; what may change on resuming."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mimic_jax import sections
from mimic_jax.command import InputError
from mimic_jax.renamed import flatten
from mimic_jax.training.sections import AdamW, Experiment, Running

# Sections that the task reads, besides one of its own name.
TASK_SECTIONS = ("model", "data", "evals")
# Sections that do not change what is learned: they may change when a run is resumed.
FREE_SECTIONS = ("run", "evals")
# A dataset may move: checkpoints know it by its fingerprint. Sizes of the model are compared by model.json.
FREE_FIELDS = ("data.train", "data.validation")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The sections of a config that training reads."""

    experiment: Experiment
    optimizer: AdamW
    run: Running


@dataclasses.dataclass(frozen=True)
class Lengths:
    """In steps: the run, its warm-up, and the whole schedule of the learning rate."""

    steps: int
    warmup: int
    total: int


def read(config: ConfigDict) -> Settings:
    """Reads the sections of a config that every task has.

    Raises:
      InputError: names the fields that are missing, unknown, or have values that cannot be used.
    """
    values = config.to_dict()
    task = values.get("task")
    missing = [name for name in ("optimizer", "run", *TASK_SECTIONS) if name not in values]
    if missing:
        raise InputError(f"--config: the section config.{missing[0]} is missing")
    inner = ("optimizer", "run", *TASK_SECTIONS, task)
    experiment = {name: value for name, value in values.items() if name not in inner}
    found = Settings(
        sections.read(Experiment, experiment, "config"),
        sections.read(AdamW, values["optimizer"], "config.optimizer"),
        sections.read(Running, values["run"], "config.run"),
    )
    if found.run.attention == "cudnn" and found.experiment.compute_dtype != "bfloat16":
        raise InputError("config.run.attention='cudnn' computes in 16 bits: set config.compute_dtype=bfloat16 as well")
    return found


def lengths_of(settings: Settings, examples: int) -> Lengths:
    """Lengths in steps, of which a field in steps overrides its twin in epochs.

    Args:
      examples: in one epoch.

    Raises:
      InputError: a length is given neither in steps nor in epochs, or lengths do not go together.
    """
    batch, experiment, optimizer = settings.experiment.batch_size, settings.experiment, settings.optimizer

    def length(name: str, in_steps: int | None, in_epochs: float | None) -> int:
        if in_steps is None and in_epochs is None:
            epochs = name.replace("steps", "epochs")
            raise InputError(f"config.{name} is not set: give it, or config.{epochs}")
        return in_steps if in_steps is not None else round(in_epochs * examples / batch)

    steps = length("steps", experiment.steps, experiment.epochs)
    warmup = length("optimizer.warmup_steps", optimizer.warmup_steps, optimizer.warmup_epochs)
    total = length("optimizer.total_steps", optimizer.total_steps, optimizer.total_epochs)
    if steps < 1:
        raise InputError(f"config.steps={steps} must be at least 1")
    if not 0 <= warmup < total:
        raise InputError(
            f"config.optimizer.warmup_steps={warmup} must be below config.optimizer.total_steps={total} "
            f"(config.steps={steps})"
        )
    return Lengths(steps, warmup, total)


def in_steps(settings: Settings) -> bool:
    """Whether all lengths are given in steps, so that the number of examples does not matter."""
    given = settings.experiment.steps, settings.optimizer.warmup_steps, settings.optimizer.total_steps
    return None not in given


def fixed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that a resumed run must share, by their names with dots."""
    flat = flatten(config)
    return {
        name: value
        for name, value in flat.items()
        if name.split(".")[0] not in (*FREE_SECTIONS, "model") and name not in FREE_FIELDS
    }


def free_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that may change when a run is resumed, by their names with dots."""
    fixed = fixed_fields(config)
    return {
        name: value for name, value in flatten(config).items() if name not in fixed and not name.startswith("model.")
    }
