"""What each start of a run writes into its workdir, besides checkpoints and metrics."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mimic_jax import files, hosts
from mimic_jax.command import InputError, TryAgain
from mimic_jax.data.mixture import Mixture
from mimic_jax.training.run import Run
from mimic_jax.training.workdir import CONFIG, DATA, ENVIRONMENT, LOCK, flatten, read_config

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "numpy", "mimic_jax")
_OPTIONAL = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")

# What may change between the runs of one workdir: it does not change what is learned. A dataset may move, since
# checkpoints know it by its fingerprint.
_OPERATIONAL = (
    "accumulate",
    "attention",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "log_every",
    "on_nonfinite",
    "remat",
    "scan_layers",
    "skip_at_most",
    "data.threads",
    "data.workers",
    "data.train",
    "eval.data",
    "eval.every",
    "eval.pairs",
    "eval.pictures",
    "mesh",
    "axis_rules",
)

# Of these, what may differ between the hosts of one run.
_OF_A_HOST = ("data.threads", "data.workers", "data.train", "eval.data")


def claim(run: Run) -> None:
    """Writes the resolved config, and what the data are, into a new workdir, or checks that it is this run's.

    The first process does; the others wait for it.

    Raises:
      InputError: the workdir cannot be written, or was made by another config, or another process has another config or
        other data.
    """
    config = run.config.to_dict()
    fields = {name: value for name, value in flatten(config).items() if name not in _OF_A_HOST}
    apart = bool(run.config.eval.data), run.held_out and run.held_out.mixture.fingerprint()
    if others := hosts.unlike_first(json.dumps([fields, run.mixture.fingerprint(), apart], sort_keys=True)):
        raise InputError(
            f"{run.workdir}: the processes {others} have another config, or other data, than process 0: they would "
            "train different models; start all with the same command, on the same files"
        )
    if hosts.is_first():
        _claim(run.workdir, config, describe_data(run.mixture))
    hosts.wait("workdir")


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Where a second run in the same workdir is refused.

    The lock goes with the process, however that ends; on a shared disk some time after its host, should that be lost.

    Raises:
      TryAgain: another run is at work there.
    """
    if not hosts.is_first():
        yield
        return
    with (workdir / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryAgain(
                f"{workdir}: another run is at work here; wait for it, or give another --workdir. If there is none, "
                f"its host was lost: the disk lets go in a while, or remove {workdir / LOCK}"
            ) from error
        except OSError:  # a disk without locks
            pass
        yield


def describe_data(mixture: Mixture) -> list[dict[str, Any]]:
    """What there is to say of each dataset: pairs, weight, and what its manifest says besides single scenes."""
    described = []
    for place, dataset in enumerate(mixture.datasets):
        about = {"folder": str(dataset.folder), "pairs": len(dataset), "fingerprint": dataset.fingerprint()}
        if mixture.weights is not None:
            about["weight"] = mixture.weights[place]
        try:
            manifest = dataset.manifest()
        except (OSError, ValueError):  # a dataset that was not mined here need not have one
            manifest = {}
        described.append(about | {key: value for key, value in manifest.items() if key != "scenes"})
    return described


def add_start(run: Run, step: int) -> None:
    """Adds what this start of the run runs on to the workdir, and the fields that may be others than at its first.

    The first process does.

    Args:
      step: updates made before.
    """
    if not hosts.is_first():
        return
    path = run.workdir / ENVIRONMENT
    try:
        starts = list(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # none yet, or damaged: nothing depends on it
        starts = []
    packages = {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL)}
    starts.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "steps": run.steps,
            "code": _revision(),
            "python": platform.python_version(),
            "packages": {name: version for name, version in packages.items() if version},
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "mesh": dict(run.setup.layout.mesh.shape),
            "config": {
                name: value for name, value in flatten(run.config.to_dict()).items() if name.startswith(_OPERATIONAL)
            },
        }
    )
    files.write(path, (json.dumps(starts, indent=2) + "\n").encode())


def _claim(workdir: Path, config: dict, data: list[dict[str, Any]]) -> None:
    path = workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Of a start that was killed there may be parts of these two.
            if any(not inside.name.startswith((DATA, CONFIG)) for inside in workdir.iterdir()):
                raise InputError(
                    f"{workdir}: holds other things and no {CONFIG}; --workdir must be new, empty, or ours"
                )
            files.write(workdir / DATA, (json.dumps(data, indent=2) + "\n").encode())
            files.write(path, (json.dumps(config, indent=2) + "\n").encode())
            return
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written ({error.strerror}); use another") from error
    made_by, ours = flatten(read_config(workdir)), flatten(json.loads(json.dumps(config)))
    if bool(made_by.get("eval.data")) != bool(ours.get("eval.data")):
        raise InputError(
            f"{path}: made with config.eval.data={made_by.get('eval.data')!r} (now {ours.get('eval.data')!r}), which "
            "decides what is held out of training; give what it was made with, or another --workdir"
        )
    different = sorted(
        field
        for field in made_by.keys() | ours.keys()
        if made_by.get(field) != ours.get(field) and not field.startswith(_OPERATIONAL)
    )
    if different:
        changes = ", ".join(f"config.{field}={made_by.get(field)!r} (now {ours.get(field)!r})" for field in different)
        raise InputError(f"{path}: made with {changes}; give what it was made with, or another --workdir")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit of the code, and whether files have changed since; None outside a repository."""
    told = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(told, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
