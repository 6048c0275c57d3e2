"""What a workdir holds, and what it says of its run, told without JAX.

`config.json` is the resolved config, `data.json` what the datasets are, `environment.json` a list of the starts of the
run: when, at which step, with which code and packages, on what. `checkpoints/` has a folder a step, `damaged/` those
that were set aside. `lock` is locked while a run is at work. For `metrics.jsonl` see `metrics`.
"""

import json
from pathlib import Path
from typing import Any

from mimic_jax.command import InputError

CONFIG = "config.json"
DATA = "data.json"
ENVIRONMENT = "environment.json"
LOCK = "lock"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"


def read_config(workdir: Path) -> dict:
    """The resolved config of the run that a workdir is of.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = workdir / CONFIG
    try:
        config = json.loads(path.read_text())
        config["objective"], config["model"], config["data"]["crop"]
        return config
    except FileNotFoundError:
        raise InputError(f"{path}: missing; --workdir is a folder that `python -m launch.pretrain` made") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is damaged, or no config of ours; use another --workdir") from error


def position_grid(workdir: Path) -> list[int] | None:
    """The grid of the added positions of the run that a workdir is of; None for a new workdir or rotary positions.

    Raises:
      InputError: the workdir's config is damaged.
    """
    return read_config(workdir)["model"].get("position_grid") if (workdir / CONFIG).is_file() else None


def saved_steps(workdir: Path) -> list[int]:
    """The steps of which there is a checkpoint; in order. Those under way and those set aside have other names."""
    folder = workdir / CHECKPOINTS
    return sorted(int(inside.name) for inside in folder.iterdir() if inside.name.isdigit()) if folder.is_dir() else []


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their names with dots."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
