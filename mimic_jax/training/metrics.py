"""`metrics.jsonl`: one object a line, each step once, however often the run was interrupted."""

import json
import time
from pathlib import Path
from typing import Any

from mimic_jax import files
from mimic_jax.command import InputError


class MetricsFile:
    """Appends to `metrics.jsonl`, after dropping what a lost run wrote beyond the step that is resumed."""

    def __init__(self, path: Path, resumed_step: int, batch_size: int):
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step] if path.exists() else []
        files.write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._batch_size = batch_size
        self._last = (resumed_step, time.monotonic())

    def write(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Waits for the metrics of `step` if need be, adds the speed since the last call, and writes them."""
        line = {"step": step} | {name: float(value) for name, value in metrics.items()}
        last_step, last_time = self._last
        now = time.monotonic()
        line["pairs_per_second"] = (step - last_step) * self._batch_size / (now - last_time)
        self._last = (step, now)
        self._file.write(json.dumps(line) + "\n")
        return line

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line that a crash cut short is left out.

    Raises:
      InputError: a line is damaged.
    """
    lines = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
            lines[-1]["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is damaged; remove that line and run again") from error
    return lines
