"""The best results of a run's evaluations, from the lines of its metrics file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimic_jax import files
from mimic_jax.task import Evaluation
from mimic_jax.workdir import BEST


def best_results(lines: list[dict[str, Any]], evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """For each evaluation that chooses by a number, that number's best value and its step; the first of equal ones.

    Args:
      lines: of the metrics file.
    """
    found = {}
    for name, evaluation in evaluations.items():
        if evaluation.best is None:
            continue
        number, direction = evaluation.best
        values = [(line["evaluation"][number], line["step"]) for line in lines if number in line.get("evaluation", {})]
        values = [(value, step) for value, step in values if math.isfinite(value)]
        if values:
            value, step = (min if direction == "min" else max)(values, key=lambda each: each[0])
            found[name] = {"number": number, "value": value, "step": step}
    return found


def write_best(workdir: Path, best: dict[str, dict[str, Any]]) -> None:
    """Writes the best results to the workdir's best.json."""
    files.write(workdir / BEST, (json.dumps(best, indent=2) + "\n").encode())
