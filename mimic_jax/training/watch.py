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
from mimic_jax.training.metrics import training_lines


class Speed:
    """Measures from one report to the next.

    Args:
      step: updates made before.
      pairs: of a step.
      flops: of the model in a step.
      compute_dtype: of the config.
    """

    def __init__(self, step: int, *, pairs: int, flops: int, compute_dtype: str):
        self._pairs, self._flops, self._chips = pairs, flops, jax.device_count()
        chip = chip_of(jax.devices()[0].device_kind)
        self._peak = chip.peak(compute_dtype) if chip else None
        self._step, self._since, self._stalled = step, time.monotonic(), 0.0

    def stalled(self, seconds: float) -> None:
        """The accelerator has waited so long for a batch."""
        self._stalled += seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within does not count."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def report(self, step: int) -> dict[str, float]:
        """The numbers since the last report, once step `step` is done.

        Returns:
          pairs_per_second, of all chips; pairs_per_second_per_chip; teraflops_per_chip, of the model a second; mfu, as
          a share of the chip's published peak, where that is known; input_stall, the share of time in which the
          accelerator waited for a batch; memory_gib, the most that a chip of this host has used, where it is told.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        steps = step - self._step
        found = {
            "pairs_per_second": steps * self._pairs / seconds,
            "pairs_per_second_per_chip": steps * self._pairs / seconds / self._chips,
            "teraflops_per_chip": steps * self._flops / seconds / self._chips / 1e12,
            "input_stall": min(self._stalled / seconds, 1.0),
        }
        if self._peak:
            found["mfu"] = found["teraflops_per_chip"] * 1e12 / self._peak
        used = [device.memory_stats() for device in jax.local_devices()]
        if all(used):
            found["memory_gib"] = max(each.get("peak_bytes_in_use", 0) for each in used) / 2**30
        self._step, self._since, self._stalled = step, now, 0.0
        return found


class Display:
    """The live line; within `with`. Other processes than the first show nothing."""

    def __init__(self, steps: int, step: int):
        console = Console(quiet=not hosts.is_first())
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._live = Progress(*columns, TextColumn("{task.fields[status]}"), console=console)
        self._lines = not console.is_terminal
        self._steps = steps
        self._task = self._live.add_task("pre-train", total=steps, completed=step, status="compiling")

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def show(self, step: int, numbers: dict[str, float]) -> None:
        """What was found of a step."""
        status = _status(numbers)
        self._live.update(self._task, completed=step, status=status)
        if self._lines:  # in a log file a live line is seen at the end alone
            self.say(f"step {step}/{self._steps}  {status}")

    def advance(self, step: int, status: str | None = None) -> None:
        """A step is under way."""
        self._live.update(self._task, completed=step, **({"status": status} if status else {}))

    def say(self, line: str) -> None:
        """A line that stays."""
        self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(lines: list[dict], first_step: int) -> Table:
    """The end of a run in a table.

    Args:
      lines: of its metrics file.
      first_step: where this start of the run began; its speed is told.
    """
    table = Table(show_header=False)
    training = training_lines(lines)
    last = training[-1]
    table.add_row("steps", f"{last['step']:,}")
    table.add_row("loss", f"{training[0]['loss']:.4f} at step {training[0]['step']}, {last['loss']:.4f} at the end")
    evaluations = [line["evaluation"] for line in lines if "evaluation" in line]
    for name, value in (evaluations[-1] if evaluations else {}).items():
        if name != "pairs":
            table.add_row(name.replace("_", " "), f"{value:.4g}")
    # The first report of a start has the compilation in it.
    recent = [line for line in training if line["step"] > first_step][1:]
    for name, form in (("pairs_per_second", "{:,.1f}"), ("pairs_per_second_per_chip", "{:,.1f}"), *_SHARES):
        told = sorted(line[name] for line in recent if name in line)
        if told:
            table.add_row(f"{_NAMES.get(name, name.replace('_', ' '))}, median", form.format(told[len(told) // 2]))
    if "memory_gib" in last:
        table.add_row("memory of a chip", f"{last['memory_gib']:.2f} GiB")
    if last.get("skipped"):
        table.add_row("steps left out, not finite", f"{last['skipped']:.0f}")
    return table


_SHARES = (("teraflops_per_chip", "{:.3g}"), ("mfu", "{:.1%}"), ("input_stall", "{:.1%}"))
_NAMES = {"mfu": "MFU", "teraflops_per_chip": "TFLOP/s per chip"}


def _status(numbers: dict[str, float]) -> str:
    status = f"loss {numbers['loss']:.4f}  {numbers['pairs_per_second_per_chip']:,.1f} pairs/s/chip"
    if "mfu" in numbers:
        status += f"  MFU {numbers['mfu']:.1%}"
    else:
        status += f"  {numbers['teraflops_per_chip'] * 1e3:,.3g} GFLOP/s/chip"
    return status + f"  input stall {numbers['input_stall']:.0%}"
