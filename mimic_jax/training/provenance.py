"""What each start of a run ran on: code, packages, devices, and the fields that may change between starts."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import jax

from mimic_jax import files, hosts
from mimic_jax.training.config import free_fields
from mimic_jax.training.run import Run
from mimic_jax.workdir import ENVIRONMENT

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "numpy", "mimic_jax")
_OPTIONAL = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def log_start(run: Run, step: int) -> None:
    """Adds this start of the run to the workdir's environment.json. The first process does.

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
            "steps": run.lengths.steps,
            "code": _revision(),
            "python": platform.python_version(),
            "packages": {name: version for name, version in packages.items() if version},
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "mesh": dict(run.setup.layout.mesh.shape),
            "config": free_fields(run.config.to_dict()),
        }
    )
    files.write(path, (json.dumps(starts, indent=2) + "\n").encode())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit of the code, and whether files have changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
