"""A workdir: `config.json`, `data.json`, metrics, and `checkpoints/STEP/` with parameters, optimizer, data position.

Checkpoints are written in the background and appear whole or not at all (Orbax).
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.data.mixture import Mixture
from mimic_jax.interop.weights import Weights
from mimic_jax.models.kinds import abstract
from mimic_jax.training.experiment import sizes_of
from mimic_jax.training.metrics import METRICS, read_metrics
from mimic_jax.training.state import TrainState

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
DATA = "data.json"

# What may change between the runs of one workdir: it does not change what is learned. A dataset may move, since
# checkpoints know it by its fingerprint.
_OPERATIONAL = (
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "data.threads",
    "data.train",
    "eval.data",
    "eval.every",
    "eval.pairs",
    "eval.pictures",
    "mesh",
    "axis_rules",
)


def open_checkpoints(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of a workdir, of which the newest `keep` are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager((workdir / CHECKPOINTS).absolute(), options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, dataset: str, config: dict) -> None:
    """Starts writing the state after `step` updates; returns once the arrays are copied, not written.

    Args:
      step: also the position in the data: the batch of global step `step` comes next.
      dataset: the fingerprint of what the positions are positions in.
      config: the resolved config.
    """
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=ocp.args.JsonSave({"step": step, "dataset": dataset}),
            config=ocp.args.JsonSave(config),
        ),
    )


def restore(checkpoints: ocp.CheckpointManager, state: TrainState, dataset: str) -> tuple[TrainState, int]:
    """The newest checkpoint, laid out as `state` is, and the global step whose batch comes next.

    Without a checkpoint: `state` itself, at step 0.

    Raises:
      InputError: the checkpoint is damaged, or was made on other data than `dataset` is the fingerprint of.
    """
    step = checkpoints.latest_step()
    if step is None:
        return state, 0
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    found = _restore(
        checkpoints,
        step,
        params=ocp.args.StandardRestore(like.params),
        optimizer=ocp.args.StandardRestore({"step": like.step, "opt_state": like.opt_state}),
        data=ocp.args.JsonRestore(),
    )
    if found.data["dataset"] != dataset:
        raise InputError(
            f"{checkpoints.directory / str(step)}: config.data.train has changed since this checkpoint was made; "
            "bring the dataset back as it was, or give another --workdir"
        )
    return TrainState(found.optimizer["step"], found.params, found.optimizer["opt_state"]), found.data["step"]


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is one to resume from."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(inside.name.isdigit() for inside in folder.iterdir())


def position_grid(workdir: Path) -> list[int] | None:
    """The grid of the added positions of the run that a workdir is of; None for a new workdir or rotary positions.

    Raises:
      InputError: the workdir's config is damaged.
    """
    return _read_config(workdir)["model"].get("position_grid") if (workdir / CONFIG).is_file() else None


def claim_workdir(workdir: Path, config: dict, data: list[dict[str, Any]]) -> None:
    """Writes the resolved config, and what the data are, into a new workdir, or checks that it is this config's.

    Raises:
      InputError: the workdir cannot be written, or was made by another config.
    """
    path = workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(inside.name != DATA for inside in workdir.iterdir()):
                raise InputError(
                    f"{workdir}: holds other things and no {CONFIG}; --workdir must be new, empty, or ours"
                )
            files.write(workdir / DATA, (json.dumps(data, indent=2) + "\n").encode())
            files.write(path, (json.dumps(config, indent=2) + "\n").encode())
            return
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written ({error.strerror}); use another") from error
    made_by, ours = _flatten(_read_config(workdir)), _flatten(json.loads(json.dumps(config)))
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


def load_weights(workdir: Path, step: int | None = None) -> Weights:
    """The weights of a workdir.

    Args:
      step: which checkpoint; the newest by default.

    Raises:
      InputError: the workdir has no config or no such checkpoint.
    """
    config = _read_config(workdir)
    folder = (workdir / CHECKPOINTS).absolute()
    nothing = InputError(f"{folder}: no checkpoint yet; run `python -m launch.pretrain` on it first")
    if not folder.is_dir():
        raise nothing
    kind, sizes = config["objective"], sizes_of(config)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise nothing
        step = steps[-1] if step is None else step
        if step not in steps:
            raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint of step {step}, only {steps}")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            nnx.to_pure_dict(nnx.state(abstract(kind, sizes))),
        )
        found = _restore(checkpoints, step, params=ocp.args.StandardRestore(like))
    about = {"origin": str(workdir), "step": step, "config": config} | _told(workdir, step)
    return Weights(kind, sizes, found.params, about)


def _told(workdir: Path, step: int) -> dict[str, Any]:
    """What the workdir says of its data, and the last metrics up to a step."""
    told = {}
    if (workdir / DATA).is_file():
        told["data"] = json.loads((workdir / DATA).read_text())
    if (workdir / METRICS).is_file():
        for line in read_metrics(workdir / METRICS):
            if line["step"] <= step:
                told["evaluation" if "evaluation" in line else "metrics"] = line
    return told


def _read_config(workdir: Path) -> dict:
    path = workdir / CONFIG
    try:
        config = json.loads(path.read_text())
        config["objective"], config["model"], config["data"]["crop"]
        return config
    except FileNotFoundError:
        raise InputError(f"{path}: missing; --workdir is a folder that `python -m launch.pretrain` made") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is damaged, or no config of ours; use another --workdir") from error


def _restore(checkpoints: ocp.CheckpointManager, step: int, **items: ocp.args.CheckpointArgs):
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**items))
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        folder = checkpoints.directory / str(step)
        if not folder.exists():
            raise InputError(f"{folder}: this checkpoint has gone meanwhile; run again") from error
        said = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(
            f"{folder}: this checkpoint cannot be read ({type(error).__name__}: {said}); if it is damaged, remove "
            "that folder, and the one before it is used"
        ) from error


def _flatten(config: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
