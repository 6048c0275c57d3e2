"""A workdir: `config.json`, `metrics.jsonl`, and `checkpoints/STEP/` with parameters, optimizer, data position, config.

Checkpoints are written in the background and appear whole or not at all (Orbax).
"""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax import nnx

from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.models.croco import CroCo, CroCoSizes
from mimic_jax.training.state import TrainState

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
METRICS = "metrics.jsonl"

# What may change between the runs of one workdir: it does not change what is learned. A dataset may move, since
# checkpoints know it by its fingerprint.
_OPERATIONAL = ("checkpoint_every", "keep_checkpoints", "log_every", "data.threads", "mesh", "axis_rules", "data.train")


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


def claim_workdir(workdir: Path, config: dict) -> None:
    """Writes the resolved config into a new workdir, or checks that the workdir is this config's.

    Raises:
      InputError: the workdir cannot be written, or was made by another config.
    """
    path = workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(workdir.iterdir()):
                raise InputError(
                    f"{workdir}: holds other things and no {CONFIG}; --workdir must be new, empty, or ours"
                )
            files.write(path, (json.dumps(config, indent=2) + "\n").encode())
            return
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written ({error.strerror}); use another") from error
    made_by, ours = _flatten(_read_config(workdir)), _flatten(config)
    different = sorted(
        field
        for field in made_by.keys() | ours.keys()
        if made_by.get(field) != ours.get(field) and not field.startswith(_OPERATIONAL)
    )
    if different:
        changes = ", ".join(f"config.{field}={made_by.get(field)!r} (now {ours.get(field)!r})" for field in different)
        raise InputError(f"{path}: made with {changes}; give what it was made with, or another --workdir")


def load_model(workdir: Path, step: int | None = None) -> tuple[CroCo, dict, int]:
    """The model of a workdir, for use on one device.

    Args:
      step: which checkpoint; the newest by default.

    Returns:
      model, the resolved config of its run, and the step.

    Raises:
      InputError: the workdir has no config or no such checkpoint.
    """
    config = _read_config(workdir)
    folder = (workdir / CHECKPOINTS).absolute()
    nothing = InputError(f"{folder}: no checkpoint yet; run `python -m launch.pretrain` on it first")
    if not folder.is_dir():
        raise nothing
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise nothing
        step = steps[-1] if step is None else step
        if step not in steps:
            raise InputError(f"{workdir / CHECKPOINTS}: no checkpoint of step {step}, only {steps}")
        graph, abstract = nnx.split(nnx.eval_shape(lambda: CroCo(CroCoSizes(**config["model"]), rngs=nnx.Rngs(0))))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), nnx.to_pure_dict(abstract)
        )
        found = _restore(checkpoints, step, params=ocp.args.StandardRestore(like))
    return nnx.merge(graph, found.params), config, step


def _read_config(workdir: Path) -> dict:
    path = workdir / CONFIG
    try:
        config = json.loads(path.read_text())
        config["model"], config["data"]
        return config
    except FileNotFoundError:
        raise InputError(f"{path}: missing; --workdir is a folder that `python -m launch.pretrain` made") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is damaged, or no config of ours; use another --workdir") from error


def _restore(checkpoints: ocp.CheckpointManager, step: int, **items: ocp.args.CheckpointArgs):
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        folder = checkpoints.directory / str(step)
        raise InputError(
            f"{folder}: this checkpoint cannot be read ({type(error).__name__}); remove that folder, "
            "and the one before it is used"
        ) from error


def _flatten(config: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
