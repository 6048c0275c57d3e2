"""How fast a run goes, and how that is shown: one live line in a terminal, plain lines in a log, a table at the end."""

import contextlib
import time
from collections.abc import Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mimic_jax import hosts
from mimic_jax.chips import chip_of
from mimic_jax.metrics_file import training_lines


class Throughput:
    """Measures from one report to the next.

    Args:
      step: updates made before.
      records: records of a step.
      unit: the name of a record, in the plural.
      flops: FLOPs of the model in a step; 0 where they are not known.
      compute_dtype: of the config.
    """

    def __init__(self, step: int, *, records: int, unit: str, flops: int, compute_dtype: str):
        self._records, self._unit, self._flops, self._chips = records, unit, flops, jax.device_count()
        chip = chip_of(jax.devices()[0].device_kind)
        self._peak = chip.peak(compute_dtype) if chip else None
        self._step, self._since, self._stalled = step, time.monotonic(), 0.0

    def stalled(self, seconds: float) -> None:
        """Adds seconds for which the accelerator waited for a batch."""
        self._stalled += seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time within out of the measurement."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def report(self, step: int) -> dict[str, float]:
        """The numbers since the last report, once step `step` is done.

        Returns:
          UNIT_per_second, over all chips; UNIT_per_second_per_chip; where the model's FLOPs are known,
          teraflops_per_chip, of the model a second, and mfu, their share of the chip's published peak, if there is one;
          input_stall, the share of time in which the accelerator waited for a batch; memory_gib, the peak use of a chip
          of this host, where the backend reports it.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        steps = step - self._step
        rate = steps * self._records / seconds
        found = {
            f"{self._unit}_per_second": rate,
            f"{self._unit}_per_second_per_chip": rate / self._chips,
            "input_stall": min(self._stalled / seconds, 1.0),
        }
        if self._flops:
            found["teraflops_per_chip"] = steps * self._flops / seconds / self._chips / 1e12
        if self._flops and self._peak:
            found["mfu"] = found["teraflops_per_chip"] * 1e12 / self._peak
        used = [device.memory_stats() for device in jax.local_devices()]
        if all(used):
            found["memory_gib"] = max(each.get("peak_bytes_in_use", 0) for each in used) / 2**30
        self._step, self._since, self._stalled = step, now, 0.0
        return found


class Display:
    """The live line; within `with`. Other processes than the first show nothing."""

    def __init__(self, steps: int, step: int, unit: str):
        console = Console(quiet=not hosts.is_first())
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._live = Progress(*columns, TextColumn("{task.fields[status]}"), console=console)
        self._lines = not console.is_terminal
        self._steps, self._unit = steps, unit
        self._task = self._live.add_task("train", total=steps, completed=step, status="compiling")

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def show(self, step: int, numbers: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        status = _status(numbers, self._unit)
        self._live.update(self._task, completed=step, status=status)
        if self._lines:  # a log file shows a live line only at the end
            self.say(f"step {step}/{self._steps}  {status}")

    def advance(self, step: int, status: str | None = None) -> None:
        """A step is under way."""
        self._live.update(self._task, completed=step, **({"status": status} if status else {}))

    def say(self, line: str) -> None:
        """A line that stays."""
        self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(lines: list[dict], first_step: int, unit: str) -> Table:
    """The end of a run in a table.

    Args:
      lines: of its metrics file.
      first_step: where this start of the run began; its speed is reported.
      unit: the name of a record, in the plural.
    """
    table = Table(show_header=False)
    training = training_lines(lines)
    last = training[-1]
    table.add_row("steps", f"{last['step']:,}")
    table.add_row("loss", f"{training[0]['loss']:.4f} at step {training[0]['step']}, {last['loss']:.4f} at the end")
    evaluations: dict[str, float] = {}
    for line in lines:
        evaluations |= line.get("evaluation", {})
    for name, value in evaluations.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    # The first report of a start includes the compilation.
    recent = [line for line in training if line["step"] > first_step][1:]
    speeds = ((f"{unit}_per_second", "{:,.1f}"), (f"{unit}_per_second_per_chip", "{:,.1f}"))
    for name, form in (*speeds, *_SHARES):
        values = sorted(line[name] for line in recent if name in line)
        if values:
            table.add_row(f"{_NAMES.get(name, name.replace('_', ' '))}, median", form.format(values[len(values) // 2]))
    if "memory_gib" in last:
        table.add_row("memory of a chip", f"{last['memory_gib']:.2f} GiB")
    if last.get("skipped"):
        table.add_row("steps skipped, not finite", f"{last['skipped']:.0f}")
    return table


_SHARES = (("teraflops_per_chip", "{:.3g}"), ("mfu", "{:.1%}"), ("input_stall", "{:.1%}"))
_NAMES = {"mfu": "MFU", "teraflops_per_chip": "TFLOP/s per chip"}


def _status(numbers: dict[str, float], unit: str) -> str:
    status = f"loss {numbers['loss']:.4f}  {numbers[f'{unit}_per_second_per_chip']:,.1f} {unit}/s/chip"
    if "mfu" in numbers:
        status += f"  MFU {numbers['mfu']:.1%}"
    elif "teraflops_per_chip" in numbers:
        status += f"  {numbers['teraflops_per_chip'] * 1e3:,.3g} GFLOP/s/chip"
    return status + f"  input stall {numbers['input_stall']:.0%}"
