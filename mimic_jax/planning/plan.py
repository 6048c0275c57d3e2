"""A config on a topology: the real train step compiled there, and what follows from what the compiler says."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from mimic_jax.command import InputError
from mimic_jax.models.kinds import build
from mimic_jax.planning.chips import Chip, chip_of
from mimic_jax.planning.counts import Counts, count
from mimic_jax.planning.flops import augmentation_flops, model_flops
from mimic_jax.planning.roofline import Roofline, roofline
from mimic_jax.training.experiment import Experiment, check, total_steps
from mimic_jax.training.mesh import Rules, sharding
from mimic_jax.training.optimizer import adamw, learning_rate
from mimic_jax.training.state import TrainState, init_state
from mimic_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    temporaries: activations, gradients and all else that lives within a step.
    peak: all of it together, and the program. None where the compiler gave up for lack of memory; then `said` has
      what it said.
    """

    parameters: int
    optimizer: int
    batch: int
    temporaries: int | None = None
    peak: int | None = None
    said: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out. model_flops: of all devices. steps: of the run, None where its length is not known.

    counts, bound: None where the step does not fit; `bound` also where the chip's rates are not known.
    """

    mesh: dict[str, int]
    device_kind: str
    chip: Chip | None
    memory: Memory
    model_flops: int
    augmentation_flops: int
    counts: Counts | None
    bound: Roofline | None
    steps: int | None
    examples_per_step: int
    seconds_to_compile: float

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool | None:
        """None where the memory of the device is not known."""
        if self.memory.peak is None:
            return False
        return None if self.chip is None else self.memory.peak <= self.chip.memory


def make_plan(config: ConfigDict, devices: Sequence[jax.Device], examples: int | None = None) -> Plan:
    """Compiles a config's train step for devices, which need not be here, and says what it needs and takes.

    Args:
      config: as in configs/. Its data is not opened.
      examples: pairs in the training set, for the length of a run in epochs.

    Raises:
      InputError: a field of the config cannot be used, on so many devices for instance.
    """
    config = config.copy_and_resolve_references()
    config.data.train = config.data.train or "unopened"
    experiment, rules = check(config), config.axis_rules.to_dict()
    lengths = _lengths(config, examples, experiment)
    mesh = _mesh(config.mesh.to_dict(), rules, experiment.records, devices)
    shapes, batch, step = _abstract_step(config, experiment, mesh, rules, lengths or (1, 1, 2))
    key = jax.eval_shape(lambda: jax.random.key(0))
    started = time.monotonic()
    lowered = step.lower(shapes, batch, key)
    memory = Memory(*(_bytes_on_one(tree) for tree in (shapes.params, shapes.opt_state, batch)))
    counts = bound = None
    chip = chip_of(devices[0].device_kind)
    sizes = dict(mesh.shape)
    model = sum(model_flops(config.objective, experiment.sizes, experiment.crop, config.batch_size).values())
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = dataclasses.replace(memory, said=_of_memory(str(error)))
    else:
        memory = _with_analysis(memory, compiled.memory_analysis())
        counts = count(compiled.as_text(), sizes)
        bound = roofline(counts, chip, mesh, model) if chip else None
    return Plan(
        sizes,
        devices[0].device_kind,
        chip,
        memory,
        model,
        augmentation_flops(experiment.augmentation, experiment.size, config.batch_size),
        counts,
        bound,
        lengths[0] if lengths else None,
        config.batch_size,
        time.monotonic() - started,
    )


def _lengths(config: ConfigDict, examples: int | None, experiment: Experiment) -> tuple[int, int, int] | None:
    fields = config.get("steps"), config.optimizer.get("warmup_steps"), config.optimizer.get("schedule_steps")
    if examples is None and None in fields:
        return None
    # As training has it: where both views of a pair are images, a pair is two examples.
    return total_steps(config, (examples or 0) * config.batch_size // experiment.records)


def _mesh(axes: dict[str, int], rules: Rules, records: int, devices: Sequence[jax.Device]) -> Mesh:
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        sizes[free[0]] = len(devices) // -math.prod(sizes.values())
    if len(free) > 1 or math.prod(sizes.values()) != len(devices):
        raise InputError(f"config.mesh={axes} does not fit {len(devices)} devices: sizes must multiply to that")
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes), devices=devices
    )
    try:
        sharding(mesh, rules, ("batch",)).shard_shape((records,))
    except ValueError as error:
        raise InputError(f"config.batch_size={records} does not divide over config.mesh={sizes}") from error
    return mesh


def _abstract_step(config, experiment, mesh, rules, lengths):
    """The state and the batch as shapes with shardings, and the step that takes them."""
    schedule = learning_rate(config.optimizer.base_learning_rate, config.batch_size, *lengths[1:])
    optimizer = adamw(
        schedule, b1=config.optimizer.b1, b2=config.optimizer.b2, weight_decay=config.optimizer.weight_decay
    )
    dtype = jnp.dtype(config.compute_dtype)

    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        return build(config.objective, experiment.sizes, rngs, dtype)

    graph, shapes = _abstract_state(make_model, optimizer, mesh, rules)
    over_batch = sharding(mesh, rules, ("batch",))
    step = make_train_step(
        graph, optimizer, schedule, experiment.augmentation, shapes, over_batch, sharding(mesh, rules)
    )
    views = jax.ShapeDtypeStruct((experiment.records, *experiment.size, 3), jnp.uint8, sharding=over_batch)
    return shapes, {"view1": views, "view2": views}, step


def _abstract_state(make_model, optimizer, mesh, rules) -> tuple[nnx.GraphDef, TrainState]:
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
    # Tracing alone: the shardings are those that init_state gives to its one jit.
    traced, shapes = jax.make_jaxpr(
        lambda key: init_state(make_model, optimizer, key, mesh, rules)[1], return_shape=True
    )(jax.eval_shape(lambda: jax.random.key(0)))
    leaves, structure = jax.tree.flatten(shapes)
    places = traced.eqns[-1].params["out_shardings"]
    return graph, jax.tree.unflatten(
        structure,
        [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for leaf, place in zip(leaves, places, strict=True)
        ],
    )


def _bytes_on_one(tree: PyTree) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _with_analysis(memory: Memory, found) -> Memory:
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes  # donated buffers are reused
    peak = found.argument_size_in_bytes + outputs + found.temp_size_in_bytes + found.generated_code_size_in_bytes
    return dataclasses.replace(memory, temporaries=found.temp_size_in_bytes, peak=peak)


def _of_memory(message: str) -> str:
    """The sentence of the compiler's message that has the numbers."""
    found = re.search(
        r"total memory required.*?exceeds available HBM \([\d.]+\w\)|Used [\d.]+\w of [\d.]+\w hbm", message
    )
    return found[0] if found else " ".join(message.split())[:200]
