"""What a task's run computes with, on a layout of devices that need not be here: no array is made."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray

from mimic_jax.command import InputError
from mimic_jax.data.source import Spec
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layout import Layout
from mimic_jax.task import Task
from mimic_jax.training.config import Lengths, Settings
from mimic_jax.training.mesh import make_layout
from mimic_jax.training.optimizer import Path, adamw, decays, learning_rate, multipliers_of
from mimic_jax.training.state import Abstract, TrainState, make_init
from mimic_jax.training.step import Step, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run.

    shapes, batch: of the state and of a batch, with their shardings.
    trained: paths of the parameters that change.
    schedule: the learning rate of a step. init: makes the state of a key. step: see `make_train_step`.
    """

    layout: Layout
    abstract: Abstract
    trained: set[Path]
    shapes: TrainState
    batch: Spec
    schedule: optax.Schedule
    init: Callable[[PRNGKeyArray], TrainState]
    step: Step

    @property
    def model(self) -> nnx.Module:
        """The model; its parameters and variables have shapes and no values."""
        return nnx.merge(self.abstract.graph, self.shapes.values())


def set_up(task: Task, settings: Settings, lengths: Lengths, devices: Sequence[jax.Device] | None = None) -> Setup:
    """Builds the parts.

    Args:
      devices: all by default.

    Raises:
      InputError: the config cannot be trained on these devices.
    """
    experiment, run = settings.experiment, settings.run
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(task.batch)}
    (rows,) = rows
    layout = make_layout(run.mesh, run.axis_rules, rows, devices)
    if experiment.batch_size % (run.accumulation_steps * layout.shards("batch")):
        raise InputError(
            f"config.run.accumulation_steps={run.accumulation_steps}: config.batch_size={experiment.batch_size} does "
            f"not divide into this number of parts on {layout.shards('batch')} devices"
        )
    compute = Compute(
        dtype=jnp.dtype(experiment.compute_dtype),
        residual_dtype=jnp.dtype(experiment.residual_dtype),
        attention=run.attention,
        remat=run.remat,
        scan=run.scan_layers,
        layout=layout,
    )

    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        return task.model(rngs, compute)

    abstract = Abstract.of(make_model)
    factors = multipliers_of(abstract.params, settings.optimizer, task.layers)
    trained = {path for path, factor in factors.items() if np.any(np.asarray(factor) > 0)}
    if not trained:
        raise InputError("config.optimizer.multipliers freezes every parameter; nothing would be trained")
    decay = decays(abstract.params, settings.optimizer.no_decay)
    schedule = learning_rate(
        settings.optimizer.peak(experiment.batch_size),
        lengths.warmup,
        lengths.total,
        settings.optimizer.end_learning_rate,
    )
    of_trained = [nnx.traversals.unflatten_mapping({path: each[path] for path in trained}) for each in (decay, factors)]
    optimizer = adamw(schedule, settings.optimizer, *of_trained)
    shapes, init = make_init(make_model, abstract, trained, optimizer, layout, ema=experiment.ema_decay > 0)
    step = make_train_step(
        task,
        abstract,
        trained,
        optimizer,
        schedule,
        layout,
        shapes,
        accumulation_steps=run.accumulation_steps,
        ema_decay=experiment.ema_decay,
        max_skipped=run.skips,
    )
    by_batch = layout.sharding(("batch",))
    batch = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_batch) for name, leaf in task.batch.items()}
    return Setup(layout, abstract, trained, shapes, batch, schedule, init, step)
