"""A task on a topology: the real train step compiled there, and what follows from the compiler's report."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from mimic_jax.chips import Chip, chip_of
from mimic_jax.planning.counts import Counts, count
from mimic_jax.planning.roofline import Roofline, roofline
from mimic_jax.task import Task
from mimic_jax.training.config import Lengths, Settings, in_steps, lengths_of
from mimic_jax.training.setup import set_up


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
    """The plan of a step.

    model_flops: of all devices; 0 where the task has no closed form. steps: of the run; None where its length is not
    known. counts, bound: None where the step does not fit; `bound` also where the chip's rates are not known.
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


def make_plan(task: Task, settings: Settings, devices: Sequence[jax.Device], examples: int | None = None) -> Plan:
    """Compiles a task's train step for devices, which need not be here, and reports what it needs.

    Args:
      task: its data is not opened.
      settings: of its config.
      examples: records in the training set, for the length of a run in epochs.

    Raises:
      InputError: a field of the config cannot be used, on this number of devices for instance.
    """
    lengths = None
    if examples is not None or in_steps(settings):
        lengths = lengths_of(settings, (examples or 0) * task.examples_per_record)
    # The learning rate does not change what is compiled.
    setup = set_up(task, settings, lengths or Lengths(2, 1, 2), devices)
    mesh, shapes = setup.layout.mesh, setup.shapes
    key = jax.eval_shape(lambda: jax.random.key(0))
    started = time.monotonic()
    lowered = setup.step.lower(shapes, setup.batch, key)
    optimizer = shapes.opt_state, shapes.ema_params
    memory = Memory(*(_bytes_on_one(tree) for tree in ((shapes.params, shapes.variables), optimizer, setup.batch)))
    counts = bound = None
    chip = chip_of(devices[0].device_kind)
    sizes = dict(mesh.shape)
    model = sum(task.flops.values())
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = dataclasses.replace(memory, said=_of_memory(str(error)))
    else:
        memory = _with_analysis(memory, compiled.memory_analysis())
        counts = count(_text(lowered, compiled), sizes)
        bound = roofline(counts, chip, mesh, model, settings.experiment.compute_dtype) if chip else None
    return Plan(
        sizes,
        devices[0].device_kind,
        chip,
        memory,
        model,
        task.augmentation_flops,
        counts,
        bound,
        lengths.steps if lengths else None,
        settings.experiment.batch_size,
        time.monotonic() - started,
    )


def _text(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> str:
    """The optimised program."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # A libtpu that is newer than jaxlib has instructions that jaxlib cannot read (async-update, on v5p). The
        # compiler itself can write them down, asked before.
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            (path,) = Path(folder).glob("*.after_codegen.txt")
            return path.read_text()


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
