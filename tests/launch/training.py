"""Pre-training as a process, small enough for seconds; what it leaves, read without our own code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import commands
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]
SMALL = {
    "steps": 40,
    "batch_size": 4,
    "run.log_every": 2,
    "run.checkpoint_every": 5,
    "model.encoder_width": 16,
    "model.encoder_depth": 1,
    "model.encoder_heads": 2,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "data.size": 20,
    "data.crop": 16,
    "optimizer.warmup_steps": 5,
    "evals.completion.every": 0,
    "evals.correspondence.every": 0,
}


def evaluations(every, pictures):
    """Changes that evaluate 4 pairs each `every` steps."""
    return {
        "evals__completion__every": every,
        "evals__completion__examples": 4,
        "evals__completion__pictures": pictures,
        "evals__correspondence__every": every,
        "evals__correspondence__examples": 4,
    }


def pretrain(dataset, workdir, *flags, devices=1, **changes):
    """To its end."""
    return commands.run(command(dataset, workdir, *flags, **changes), environment=xla_flags(devices))


def start(dataset, workdir, *flags, devices=1, **changes):
    """The process, under way."""
    words = [sys.executable, "-m", *command(dataset, workdir, *flags, **changes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | xla_flags(devices), **pipes)


def command(dataset, workdir, *flags, **changes):
    fields = SMALL | {"data.train": dataset} | {name.replace("__", "."): value for name, value in changes.items()}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["launch.pretrain", "--config=configs/croco_tiny.py", f"--workdir={workdir}", *flags, *options]


def xla_flags(devices):
    flags = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip()}


def wait_for_step(workdir, step, *processes):
    """Returns once a step has been logged, or a process has ended."""
    wait_for(lambda: max((line["step"] for line in metrics(workdir)), default=0) >= step, *processes)


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] if path.exists() else []


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics(workdir) if "loss" in line}


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def parameters(workdir, step):
    folder = (workdir / "checkpoints" / str(step) / "params").absolute()
    reader = ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree
    )
    found = reader.restore(folder, restore_args=as_numpy)
    return {path: np.asarray(leaf) for path, leaf in _flatten(found)}


def assert_bit_identical(workdir, other, step=SMALL["steps"]):
    expected, found = parameters(other, step), parameters(workdir, step)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def flip_a_bit(checkpoint):
    """In the middle of the largest file of its arrays, which compression does not notice."""
    path = max((path for path in (checkpoint / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _flatten(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
