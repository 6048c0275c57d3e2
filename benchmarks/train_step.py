"""How fast the real train step is, against a large matrix product measured in the same process.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --configs=croco_v2_vitl_base --dtypes=bfloat16 --attention=xla,cudnn

Prints for each config and dtype, and each combination of the options given: milliseconds a step, examples and model
FLOPs a second, the share of the matrix product's FLOPs a second that this is, and the step's peak memory. A step is
that of launch.pretrain, augmentation and optimizer included, on random pixels that lie on the accelerator already.
Model FLOPs are the closed form's: what is computed twice, or beside matrix products, does not count.

By default a CPU has the tiny and the B models at few examples, and an accelerator all presets, each at the largest
power of two that fits. Every row has a process of its own, so that none finds its memory taken.
"""

import dataclasses
import importlib
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from mimic_jax import command
from mimic_jax.chips import chip_of
from mimic_jax.command import InputError
from mimic_jax.nn.compute import ATTENTION, REMAT
from mimic_jax.task import Task
from mimic_jax.tasks import make_task
from mimic_jax.training import config as configs
from mimic_jax.training.config import Lengths, Settings
from mimic_jax.training.setup import Setup, set_up

ON_CPU = {"croco_tiny": 32, "croco_v1_vitb": 4, "croco_v2_vitb_small": 4, "mimic_mae_vitb": 8}
MOST = 1024
ROUNDS = 3
# Where memory is extrapolated from.
FIRST = (8, 16)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is measured. batch: None for the largest power of two that fits."""

    config: str
    changes: dict[str, Any]
    batch: int | None
    steps: int

    def read(self, batch: int) -> ConfigDict:
        """The config, at so many examples a step."""
        config = importlib.import_module(f"configs.{self.config}").get_config()
        config.data.train = "unopened"
        config.update_from_flattened_dict(self.changes | {"batch_size": batch})
        return config

    def parts(self, batch: int) -> tuple[Task, Settings]:
        """The task and the settings of the config."""
        config = self.read(batch)
        settings = configs.read(config)
        return make_task(config), settings


@dataclasses.dataclass(frozen=True)
class Measured:
    """batch: examples a step. seconds: of one. flops: of the model in one.

    peak: FLOPs a second of the matrix product on all devices. published: the same by the chip's maker, if known.
    memory: bytes of a device at the most, until the last step. told: whether the device said so; else the compiler did.
    """

    batch: int
    seconds: float
    flops: int
    peak: float
    published: float | None
    memory: float
    told: bool
    seconds_to_compile: float


def measure(row: Row) -> Measured | str:
    """One row, or why there is none."""
    try:
        batch = row.batch or largest_batch(lambda batch: needed(compiled(row, batch)[1]), room())
        while True:
            try:
                return measure_at(row, batch)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if row.batch or batch == 1:
                    return f"out of memory at {batch} examples"
            batch //= 2
    except InputError as error:
        return str(error)


def measure_at(row: Row, batch: int) -> Measured:
    """The row at so many examples."""
    started = time.perf_counter()
    setup, step = compiled(row, batch)
    compiling = time.perf_counter() - started
    seconds = step_time(setup, step, row.steps)
    # Before the matrix product, which may need more memory than the step; the step's is free again by then.
    device = jax.devices()[0]
    told = (device.memory_stats() or {}).get("peak_bytes_in_use")
    memory = needed(step) if told is None else told
    task, settings = row.parts(batch)
    dtype = settings.experiment.compute_dtype
    peak = matrix_product(jnp.dtype(dtype)) * jax.device_count()
    chip = chip_of(device.device_kind)
    published = chip and chip.peak(dtype) * jax.device_count()
    flops = sum(task.flops.values())
    return Measured(batch, seconds, flops, peak, published, memory, told is not None, compiling)


def step_time(setup: Setup, step: Any, steps: int) -> float:
    """Seconds of a compiled step: the best of several rounds of so many. State and pixels are gone afterwards."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    pixels = {
        name: jax.device_put(rng.integers(0, 256, view.shape, np.uint8), view.sharding)
        for name, view in setup.batch.items()
    }
    state, rounds = setup.init(key), []
    state, metrics = step(state, pixels, key)
    for _ in range(ROUNDS):
        jax.block_until_ready(metrics)
        started = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, pixels, key)
        jax.block_until_ready(metrics)
        rounds.append((time.perf_counter() - started) / steps)
    return min(rounds)


def compiled(row: Row, batch: int) -> tuple[Setup, Any]:
    """The parts of a run, and its compiled step."""
    setup = set_up(*row.parts(batch), Lengths(1000, 10, 1000))
    return setup, setup.step.lower(setup.shapes, setup.batch, jax.random.key(0)).compile()


def needed(step: Any) -> int:
    """Bytes of a device that the compiler has laid out; donated buffers count once."""
    found = step.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + outputs


def room() -> float:
    """Bytes of a device that may be used; as many as one likes where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


def largest_batch(bytes_at: Callable[[int], float], limit: float) -> int:
    """The largest power of two up to MOST whose memory, taken as a straight line through two points, fits."""
    (first, second), (low, high) = FIRST, (bytes_at(batch) for batch in FIRST)
    each = max((high - low) / (second - first), 1.0)
    return 2 ** int(math.log2(min(MOST, max(1.0, first + (limit - low) / each))))


def matrix_product(dtype: jnp.dtype) -> float:
    """FLOPs a second of a product of two square matrices on one device, at the best of several sizes."""
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    multiply, best = jax.jit(jnp.matmul), 0.0
    for size in sizes:
        left, right = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
        multiply(left, right).block_until_ready()
        times = max(2, int(2e10 / size**3)) if jax.default_backend() == "cpu" else 20
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(times):
                product = multiply(left, right)
            product.block_until_ready()
            best = max(best, times * 2 * size**3 / (time.perf_counter() - started))
    return best


def presets() -> list[str]:
    """Names of the configs."""
    found = (Path(__file__).parents[1] / "configs").glob("[!_]*.py")
    return sorted(path.stem for path in found if path.stem != "common")


def rows(backend: str) -> list[Row]:
    """What the flags ask for."""
    given = flags.FLAGS
    names = given.configs or (list(ON_CPU) if backend == "cpu" else presets())
    _check(names, presets(), "configs")
    _check(given.dtypes, ("bfloat16", "float32"), "dtypes")
    options = {}
    for flag, known in (("remat", REMAT), ("scan_layers", ("true", "false")), ("attention", ATTENTION)):
        _check(getattr(given, flag) or (), known, flag)
        if values := getattr(given, flag):
            options[f"run.{flag}"] = [value == "true" for value in values] if flag == "scan_layers" else values
    found = []
    for name, dtype, *chosen in itertools.product(names, given.dtypes, *options.values()):
        changes = {"compute_dtype": dtype} | dict(zip(options, chosen, strict=True))
        batch = given.batch or (ON_CPU.get(name, 4) if backend == "cpu" else None)
        found.append(Row(name, changes, batch, given.steps or (3 if backend == "cpu" else 20)))
    return found


def _check(values: Sequence[str], known: Sequence[str], flag: str) -> None:
    for value in values:
        if value not in known:
            raise InputError(f"--{flag}={value} is none of {', '.join(known)}")


def cells(row: Row, found: Measured | str) -> list[str]:
    """Of a line of the table."""
    options = (f"{name.removeprefix('run.')} {value}" for name, value in row.changes.items() if name != "compute_dtype")
    line = [row.config, row.changes["compute_dtype"], ", ".join(options)]
    if isinstance(found, str):
        return [*line, found]
    rate = found.flops / found.seconds
    return [
        *line,
        str(found.batch),
        f"{1e3 * found.seconds:,.1f}",
        f"{found.batch / found.seconds:,.1f}",
        f"{rate / 1e12:.3g}",
        f"{found.peak / 1e12:.3g}",
        f"{rate / found.peak:.0%}",
        f"{rate / found.published:.0%}" if found.published else "",
        f"{found.memory / 2**30:.2f}{'' if found.told else '*'}",
        f"{found.seconds_to_compile:.0f}",
    ]


def device() -> tuple[str, str]:
    """The backend, and what there is of it."""
    return jax.default_backend(), f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def main() -> None:
    """Runs the command."""
    # All but what a display may need, not the three quarters that JAX takes; read when a row's process starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 140
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone:
        backend, devices = alone.submit(device).result()
        measures = (
            "batch",
            "ms a step",
            "examples a s",
            "TFLOP/s",
            "product",
            "MFU",
            "of published",
            "GiB",
            "compile s",
        )
        table = Table("config", "dtype", "options", *measures, title=devices)
        try:
            for row in rows(backend):
                with errors.status(f"{row.config} {row.changes}"):
                    table.add_row(*cells(row, alone.submit(measure, row).result()))
        finally:  # after an interrupt, what is measured by then
            console.print(table)
    console.print("MFU: of the matrix product. *: by the compiler, as the device tells nothing of its memory.")


if __name__ == "__main__":
    flags.DEFINE_list("configs", None, "Names in configs/. Default: all; on a CPU the tiny and some B models.")
    flags.DEFINE_integer("batch", None, "Examples a step. Default: the most that fit; on a CPU a few.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps between looks at the clock. Default: 20; on a CPU 3.", lower_bound=1)
    flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "Of activations and products.")
    flags.DEFINE_list("remat", None, f"To compare, of {', '.join(REMAT)}. Default: as configs have it.")
    flags.DEFINE_list("scan_layers", None, "To compare, of true, false. Default: as configs have it.")
    flags.DEFINE_list("attention", None, f"To compare, of {', '.join(ATTENTION)}. Default: as configs have it.")
    command.run(main)
