"""A workdir belongs to one config, and to one process at a time."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimic_jax import files, hosts
from mimic_jax.command import InputError, TryAgain
from mimic_jax.renamed import flatten
from mimic_jax.training.config import fixed_fields
from mimic_jax.training.run import Run
from mimic_jax.workdir import CONFIG, DATA, LOCK, MODEL, read_config, read_model, write_model

# Fields that may differ between the hosts of one run.
_OF_A_HOST = ("run.threads", "run.workers", "run.compile_cache", "data.train", "data.validation")


def claim_workdir(run: Run) -> None:
    """Writes the resolved config, the model and the data's description into a new workdir, or checks an old one's.

    The first process does; the others wait for it.

    Raises:
      InputError: the workdir cannot be written, or was made by another config, or another process has another config
        or other data.
    """
    config = run.config.to_dict()
    fields = {name: value for name, value in flatten(config).items() if name not in _OF_A_HOST}
    if others := hosts.unlike_first(
        json.dumps([fields, run.source.fingerprint, _has_validation(config)], sort_keys=True)
    ):
        raise InputError(
            f"{run.workdir}: the processes {others} have another config, or other data, than process 0: they would "
            "train different models; start all with the same command, on the same files"
        )
    if hosts.is_first():
        _claim(run, config)
    hosts.wait("workdir")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Refuses a second run in the same workdir.

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


def _claim(run: Run, config: dict[str, Any]) -> None:
    workdir, path = run.workdir, run.workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # A start that was killed may have left parts of these files.
            if any(not inside.name.startswith((DATA, MODEL, CONFIG)) for inside in workdir.iterdir()):
                raise InputError(
                    f"{workdir} is not empty and has no {CONFIG}: it was not written by mimic_jax. "
                    "Choose another --workdir"
                )
            files.write(workdir / DATA, (json.dumps(run.source.about, indent=2) + "\n").encode())
            _write_model(run)
            files.write(path, (json.dumps(config, indent=2) + "\n").encode())
            return
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written ({error.strerror}); use another") from error
    _check_config(path, read_config(workdir), json.loads(json.dumps(config)))
    if run.task.backbone is not None:
        was, now = (
            dataclasses.asdict(each.sizes) | {"kind": each.kind} for each in (read_model(workdir), run.task.backbone)
        )
        _refuse(path, {f"model.{name}": (was[name], now[name]) for name in now if was[name] != now[name]})
        if not (workdir / MODEL).exists():
            _write_model(run)


def _check_config(path: Path, made_by: dict[str, Any], ours: dict[str, Any]) -> None:
    if _has_validation(made_by) != _has_validation(ours):
        was, now = (config.get("data", {}).get("validation") for config in (made_by, ours))
        raise InputError(
            f"{path}: made with config.data.validation={was!r} (now {now!r}), which decides which scenes are held out "
            "of training; give the former, or another --workdir"
        )
    was, now = fixed_fields(made_by), fixed_fields(ours)
    _refuse(
        path,
        {
            name: (was.get(name), now.get(name))
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name)
        },
    )


def _refuse(path: Path, different: dict[str, tuple[Any, Any]]) -> None:
    if different:
        changes = ", ".join(f"config.{name}={was!r} (now {now!r})" for name, (was, now) in different.items())
        raise InputError(f"{path}: made with {changes}; give the former, or another --workdir")


def _has_validation(config: dict[str, Any]) -> bool:
    return bool(config.get("data", {}).get("validation"))


def _write_model(run: Run) -> None:
    if run.task.backbone is not None:
        write_model(run.workdir, run.task.backbone)
