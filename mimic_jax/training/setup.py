"""What a config's run computes with, on a layout of devices that need not be here: no array is made."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from mimic_jax.command import InputError
from mimic_jax.models.kinds import build
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layout import Layout
from mimic_jax.training.experiment import Experiment
from mimic_jax.training.mesh import make_layout
from mimic_jax.training.optimizer import adamw, learning_rate
from mimic_jax.training.state import TrainState, make_init
from mimic_jax.training.step import Step, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run.

    shapes, batch: of the state and of the views of a batch that the step looks at, with their shardings.
    schedule: the learning rate of a step. init: makes the state of a key. step: see `make_train_step`.
    """

    layout: Layout
    graph: nnx.GraphDef
    shapes: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    schedule: optax.Schedule
    init: Callable[[PRNGKeyArray], TrainState]
    step: Step

    @property
    def model(self) -> nnx.Module:
        """The model; its parameters have shapes and no values."""
        return nnx.merge(self.graph, self.shapes.params)


def set_up(
    config: ConfigDict,
    experiment: Experiment,
    lengths: tuple[int, int],
    devices: Sequence[jax.Device] | None = None,
) -> Setup:
    """Builds the parts.

    Args:
      experiment: what `check` made of the config.
      lengths: of the warm-up and of the whole schedule, in steps.
      devices: all by default.

    Raises:
      InputError: the config cannot be trained on so many devices.
    """
    layout = make_layout(config.mesh.to_dict(), config.axis_rules.to_dict(), experiment.records, devices)
    if config.batch_size % (config.accumulate * layout.parts("batch")):
        raise InputError(
            f"config.accumulate={config.accumulate}: config.batch_size={config.batch_size} does not divide into so "
            f"many parts for {layout.parts('batch')} devices"
        )
    compute = Compute(jnp.dtype(config.compute_dtype), config.attention, config.remat, config.scan_layers, layout)
    schedule = learning_rate(config.optimizer.base_learning_rate, config.batch_size, *lengths)
    optimizer = adamw(
        schedule,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
    )

    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        return build(config.objective, experiment.sizes, rngs, compute)

    graph, shapes, init = make_init(make_model, optimizer, layout, average=config.ema > 0)
    step = make_train_step(
        graph,
        optimizer,
        schedule,
        experiment.augmentation,
        layout,
        shapes,
        accumulate=config.accumulate,
        average_decay=config.ema,
        skip_at_most=experiment.skip_at_most,
    )
    view = jax.ShapeDtypeStruct(
        (experiment.records, *experiment.size, 3), jnp.uint8, sharding=layout.sharding(("batch",))
    )
    return Setup(layout, graph, shapes, dict.fromkeys(experiment.augmentation.names, view), schedule, init, step)
