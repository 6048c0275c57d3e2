"""Weights from any path: a workdir, a weights folder, or a file of another system's."""

import json
from pathlib import Path
from typing import Any

from mimic_jax import checkpoints
from mimic_jax.command import InputError
from mimic_jax.interop import weights
from mimic_jax.interop.weights import Weights
from mimic_jax.metrics_file import METRICS, read_metrics
from mimic_jax.workdir import CHECKPOINTS, CONFIG, DATA, read_config, read_model, saved_steps


def load(path: str | Path, step: int | None = None) -> Weights:
    """The weights at a path.

    Args:
      path: the workdir of a run, a folder that `launch.import_weights` or `launch.export` made, or a .pth or
        .safetensors file that `launch.import_weights` can read without flags.
      step: which checkpoint of a workdir; the newest by default.

    Raises:
      InputError: there is nothing at the path that can be read, or there is no such checkpoint.
      TryAgain: the checkpoint may be whole, but cannot be read now.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a workdir, a weights folder, or a .pth or .safetensors")
    if path.is_dir() and not (path / weights.DESCRIPTION).is_file():
        if (path / CONFIG).is_file():
            return _load_workdir(path, step)
        raise InputError(
            f"{path}: is neither a workdir (it has no {CONFIG}) nor a weights folder (no {weights.DESCRIPTION})"
        )
    if step is not None:
        raise InputError(f"--step={step}: {path} is not a workdir and has one set of weights only; leave the flag out")
    if path.is_dir():
        return weights.load_folder(path)
    from mimic_jax.interop.importing import import_file

    return import_file(path)[0]


def _load_workdir(workdir: Path, step: int | None) -> Weights:
    """The backbone in a checkpoint: the average of its parameters over steps, where the run keeps one."""
    described = read_model(workdir)
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint yet; run `python -m launch.pretrain` on it first")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint of step {step}, only {steps}")
    folder = workdir / CHECKPOINTS / str(step)
    try:
        params = checkpoints.read_params(folder)
    except checkpoints.Damaged as error:
        raise InputError(f"{folder}: this checkpoint cannot be read ({error}); give another step") from error
    params = weights.select(params, described.kind, described.sizes, folder)
    about = {"origin": str(workdir), "step": step, "config": read_config(workdir)} | _records(workdir, step)
    return Weights(described.kind, described.sizes, params, about, described.seen)


def _records(workdir: Path, step: int) -> dict[str, Any]:
    """The description of a workdir's data, and its last metrics and evaluation up to a step."""
    found = {}
    if (workdir / DATA).is_file():
        found["data"] = json.loads((workdir / DATA).read_text())
    if (workdir / METRICS).is_file():
        for line in read_metrics(workdir / METRICS):
            if line["step"] <= step:
                found["evaluation" if "evaluation" in line else "metrics"] = line
    return found
