"""`metrics.jsonl` of a workdir: one line of JSON per logged step and per evaluation. Never imports jax."""

import json
from pathlib import Path
from typing import Any

from mimic_jax.command import InputError

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a crash cut short is left out.

    Lines about training have numbers by name; lines about an evaluation have its numbers under "evaluation".

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


def training_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a metrics file that are about training."""
    return [line for line in lines if "evaluation" not in line]
