"""A run that is about to be trained: a config with its task, its data opened, its lengths known, its parts built."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mimic_jax import hosts
from mimic_jax.command import InputError
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.placement import held_rows, to_devices
from mimic_jax.data.prefetch import Prefetch
from mimic_jax.data.source import Source, batches, describe_rows
from mimic_jax.interop.load import load
from mimic_jax.interop.weights import Weights
from mimic_jax.models.sizes import Sizes
from mimic_jax.task import Opened, Task
from mimic_jax.training import config as configs
from mimic_jax.training.compile_cache import use_compile_cache
from mimic_jax.training.config import Lengths, Settings
from mimic_jax.training.setup import Setup, set_up
from mimic_jax.workdir import CONFIG, find_model, saved_steps

# Makes a task of a config; `known` are the sizes of the weights that it starts from, or of the run that it resumes.
MakeTask = Callable[[ConfigDict, Sizes | None], Task]

_ENCODER = (
    "encoder_width",
    "encoder_depth",
    "encoder_heads",
    "patch_size",
    "positions",
    "class_token",
    "position_grid",
)
_DECODER = ("decoder_width", "decoder_depth", "decoder_heads")


@dataclasses.dataclass(frozen=True)
class Run:
    """config: resolved. workdir: where the run's files go. initial: weights that a fresh run starts from, or None."""

    config: ConfigDict
    workdir: Path
    settings: Settings
    task: Task
    opened: Opened
    initial: Weights | None
    lengths: Lengths
    setup: Setup

    @property
    def source(self) -> Source:
        """The training examples."""
        return self.opened.train

    @property
    def records(self) -> int:
        """Records of a step."""
        return next(iter(self.task.batch.values())).shape[0]

    @property
    def init_key(self) -> jax.Array:
        """Decides the initial parameters."""
        return jax.random.split(jax.random.key(self.settings.experiment.seed))[0]

    @property
    def step_key(self) -> jax.Array:
        """Decides everything random in the steps."""
        return jax.random.split(jax.random.key(self.settings.experiment.seed))[1]

    def batches(self, first_step: int) -> Prefetch:
        """Batches on the devices, from global step `first_step` (0-based) on; each host reads its devices' rows."""
        spec = self.setup.batch
        rows = held_rows(next(iter(spec.values())).sharding, self.records)
        read = batches(
            self.source,
            batch_size=self.records,
            seed=self.settings.experiment.seed,
            first_step=first_step,
            rows=rows,
            threads=self.settings.run.threads,
            workers=self.settings.run.workers,
        )
        return Prefetch(read, functools.partial(to_devices, spec=spec, rows=rows))

    def names(self, step: int) -> list[str]:
        """The examples of a step, counted from 1, for a person."""
        indices = examples_in_step(
            step - 1,
            lengths=self.source.lengths,
            weights=self.source.weights,
            batch_size=self.records,
            seed=self.settings.experiment.seed,
        )
        return describe_rows(self.source, indices)

    def about(self) -> str:
        """One line about the run, and lines about what is unusual."""
        unit, steps = self.task.unit, self.lengths.steps
        sizes = {path: parameter.get_value().size for path, parameter in self.setup.abstract.params.items()}
        trained = sum(sizes[path] for path in self.setup.trained)
        parameters = f"{sum(sizes.values()) / 1e6:.1f} M parameters"
        if trained < sum(sizes.values()):
            parameters += f" ({trained / 1e6:.1f} M trained)"
        peak = float(self.setup.schedule(min(steps, self.lengths.warmup)))
        lines = [
            f"{self.task.name}, {parameters}: {len(self.source)} {unit} to train on; {steps} steps of {self.records} "
            f"{unit}, learning rate up to {peak:.3g}"
        ]
        lines += self.opened.notes
        if steps <= self.lengths.warmup:
            lines.append(
                f"warning: the run ends within the warm-up of {self.lengths.warmup} steps: the learning rate stays "
                "below its peak; set config.optimizer.warmup_steps and total_steps for a short run"
            )
        if len(self.source) < self.records:
            lines.append(
                f"warning: config.data.train has {len(self.source)} {unit}, fewer than the {self.records} of a step"
            )
        return "\n".join(lines)


def open_run(config: ConfigDict, workdir: Path, make: MakeTask) -> Run:
    """Checks all of a config that can be checked before anything is computed, and builds its parts.

    Args:
      workdir: of the run, which may have been started before; nothing is written.
      make: the task's; see mimic_jax/tasks.

    Raises:
      InputError: a field of the config, the weights or the data cannot be used.
    """
    settings = configs.read(config)
    use_compile_cache(settings.run.compile_cache)
    described = find_model(workdir) if (workdir / CONFIG).is_file() else None
    known = described.sizes if described else None
    initial = None
    fresh = hosts.as_first(not saved_steps(workdir))  # asked by every process, whatever its config
    if settings.experiment.init and fresh:
        initial = load(settings.experiment.init)
        known = known or initial.sizes
    task = make(config, known)
    if initial:
        check_initial(initial, task)
    opened = task.open()
    lengths = configs.lengths_of(settings, len(opened.train) * task.examples_per_record)
    setup = set_up(task, settings, lengths)
    return Run(_resolved(config, task), workdir, settings, task, opened, initial, lengths, setup)


def check_initial(weights: Weights, task: Task) -> tuple[str, ...]:
    """Checks that a task's model can start from weights.

    Returns:
      The top-level modules that the weights initialise.

    Raises:
      InputError: names every size that differs, and the flags that make them equal.
    """
    modules = task.takes(weights.kind)
    if modules is None or task.backbone is None:
        raise InputError(f"config.init: the task {task.name} cannot start from weights of kind {weights.kind!r}")
    shared = _ENCODER + (_DECODER if "decoder" in modules else ())
    different = [field for field in shared if getattr(weights.sizes, field) != getattr(task.backbone.sizes, field)]
    if {"positions", "position_grid"} <= set(different):  # other positions have another grid, or none
        different.remove("position_grid")
    if different:
        flags = " ".join(f"--config.model.{field}={getattr(weights.sizes, field)}" for field in different)
        raise InputError(f"config.init: these weights are of another model than config.model; give {flags}")
    return modules


def _resolved(config: ConfigDict, task: Task) -> ConfigDict:
    """The config with every field of the model filled in."""
    resolved = ConfigDict(config.to_dict())
    if task.backbone is not None:
        kind = {"kind": task.backbone.kind} if "kind" in resolved.model else {}
        resolved.model = ConfigDict(kind | dataclasses.asdict(task.backbone.sizes))
    return resolved
