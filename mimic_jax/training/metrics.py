"""What a run tells: `metrics.jsonl`, each step once however often the run was interrupted, and TensorBoard."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mimic_jax import files
from mimic_jax.command import InputError

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Metrics:
    """Writes metrics and pictures of one run, after dropping what a lost run wrote beyond the step that is resumed."""

    def __init__(self, workdir: Path, resumed_step: int):
        from tensorboardX import SummaryWriter

        path = workdir / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step] if path.exists() else []
        files.write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / TENSORBOARD), purge_step=resumed_step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line of numbers about training at `step`."""
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        self._add("train", step, metrics)

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """One line of what an evaluation after `step` updates found."""
        self._file.write(json.dumps({"step": step, "evaluation": results}) + "\n")
        self._add("evaluation", step, results)

    def add_picture(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """A picture for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def _add(self, group: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):  # TensorBoard has no place for it
                continue
            self._board.add_scalar(f"{group}/{name}", value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a crash cut short is left out.

    Lines about training have numbers by name; lines about an evaluation have these under "evaluation".

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


def training_lines(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Of the lines of a metrics file, those about training."""
    return [line for line in lines if "evaluation" not in line]
