"""Tiny labelled datasets, and fine-tuning small enough for seconds."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.finetune import depth, normals
from mimic_jax import records
from tests import commands
from tests.datasets import make_image, write_dataset

CONFIGS = {"depth": depth.get_config, "normals": normals.get_config}
# Sizes of an encoder that configs/finetune leaves open.
ENCODER = {"model.encoder_width": 16, "model.encoder_depth": 2, "model.encoder_heads": 2, "model.patch_size": 8}
HEAD = {"head": "linear", "dpt_stages": (4, 8, 8, 8), "dpt_features": 8}
SMALL = {
    "steps": 12,
    "batch_size": 4,
    "compute_dtype": "float32",
    "data.size": 40,
    "data.crop": 32,
    "run.log_every": 1,
    "run.checkpoint_every": 4,
    "run.threads": 2,
    "optimizer.warmup_epochs": 1.0,
    "optimizer.total_epochs": 50.0,
}


def write_labelled(
    folder: Path, count: int, labels: Sequence[str] = ("depth", "normals"), scenes: int = 4, first: int = 0
) -> Path:
    """A dataset of `make_image`'s images, numbered from `first` by their `frame`, scene by scene."""
    scene_of = lambda index: f"room {index * scenes // count}"  # noqa: E731
    images = [make_image(first + index, labels, scene_of(index)) for index in range(count)]
    write_dataset(folder, images, shards=1, schema=records.images.schema(labels))
    return folder


def small_config(task: str, **changes: Any) -> ConfigDict:
    """The config of a fine-tuning of `SMALL` with an encoder's sizes; changes as `data__crop=16`."""
    config = CONFIGS[task]()
    fields = SMALL | ENCODER | {f"{task}.{name}": value for name, value in HEAD.items()}
    with config.ignore_type():
        config.update_from_flattened_dict(fields | {name.replace("__", "."): each for name, each in changes.items()})
    return config


def words(task: str, dataset: Path | str, workdir: Path, *flags: str, **changes: Any) -> list[str]:
    """The command line of a fine-tuning of `SMALL`, without an encoder's sizes."""
    fields = SMALL | {f"{task}.{name}": value for name, value in HEAD.items()} | {"data.train": dataset}
    fields |= {f"evals.{task}.pictures": 0} | {name.replace("__", "."): value for name, value in changes.items()}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["launch.finetune", f"--config=configs/finetune/{task}.py", f"--workdir={workdir}", *flags, *options]


def finetune(*arguments: Any, **changes: Any) -> subprocess.CompletedProcess:
    """`words` as a command, to its end."""
    return commands.run(words(*arguments, **changes))


def start(*arguments: Any, **changes: Any) -> subprocess.Popen:
    """`words` as a process of its own, which can be stopped."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", *words(*arguments, **changes)]
    return subprocess.Popen(command, cwd=commands.ROOT, env=dict(os.environ), **pipes)
