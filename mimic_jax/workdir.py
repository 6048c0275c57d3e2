"""The files of a workdir, read without JAX.

`config.json` is the resolved config. `model.json` says which backbone the checkpoints hold. `data.json` describes the
datasets. `environment.json` lists the starts of the run: when, at which step, with which code and packages, on which
devices. `checkpoints/` has a folder per step; `damaged/` has the checkpoints that failed to verify. `lock` is locked
while a run is at work. For `metrics.jsonl` see `mimic_jax.metrics_file`.
"""

import json
from pathlib import Path
from typing import Any

from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.models.description import Description, from_config, from_json, to_json
from mimic_jax.renamed import upgraded

CONFIG = "config.json"
MODEL = "model.json"
DATA = "data.json"
BEST = "best.json"
ENVIRONMENT = "environment.json"
LOCK = "lock"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"


def read_config(workdir: Path) -> dict[str, Any]:
    """The resolved config of a workdir's run, with today's names of fields.

    Raises:
      InputError: the workdir has no config, or it is damaged.
    """
    path = workdir / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing; --workdir is a folder that `python -m launch.pretrain` made") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); use another --workdir") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: is damaged, or not a config of mimic_jax; use another --workdir")
    return upgraded(config)


def write_model(workdir: Path, backbone: Description) -> None:
    """Writes which backbone the checkpoints of a workdir hold.

    A fine-tuned encoder is of kind "vit": its checkpoints may hold more modules, which readers of the backbone ignore.

    Raises:
      OSError: the workdir cannot be written.
    """
    described = to_json(backbone.kind, backbone.sizes, backbone.seen)
    files.write(workdir / MODEL, (json.dumps(described, indent=2) + "\n").encode())


def read_model(workdir: Path) -> Description:
    """Which backbone the checkpoints of a workdir hold. Workdirs without `model.json` have it in their config.

    Raises:
      InputError: `model.json` or the config is damaged, or neither describes a backbone.
    """
    path = workdir / MODEL
    try:
        return from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({_reason(error)}); restore it from a copy of the workdir") from error
    config = read_config(workdir)
    try:
        return from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{workdir}: has no {MODEL}, and {CONFIG} does not describe a backbone ({_reason(error)}); use another "
            "workdir"
        ) from error


def find_model(workdir: Path) -> Description | None:
    """Which backbone the checkpoints of a workdir hold; None where its task has none.

    Raises:
      InputError: `model.json` or the config is damaged.
    """
    # Before there was `model.json`, every model had a kind.
    has_one = (workdir / MODEL).exists() or "kind" in read_config(workdir).get("model", {})
    return read_model(workdir) if has_one else None


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a checkpoint, in ascending order. Unfinished and damaged checkpoints have other names."""
    folder = workdir / CHECKPOINTS
    return sorted(int(inside.name) for inside in folder.iterdir() if inside.name.isdigit()) if folder.is_dir() else []


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
