"""Sections that experiments share, with their usual values; docs/config.md says what each field means."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def experiment(task: str, **changes: Any) -> ConfigDict:
    """The fields outside sections. An experiment sets `batch_size`, and `steps` or `epochs`."""
    return _section(
        {
            "task": task,
            "seed": 0,
            "init": "",
            "steps": placeholder(int),
            "epochs": placeholder(float),
            "batch_size": placeholder(int),
            "compute_dtype": "bfloat16",
            "residual_dtype": "float32",
            "ema_decay": 0.0,
        },
        changes,
    )


def pairs(**changes: Any) -> ConfigDict:
    """The data section of completion: pairs of views."""
    return _section(_datasets() | {"views": "pair", "swap": 0.0}, changes)


def images(**changes: Any) -> ConfigDict:
    """The data section of tasks on labelled images."""
    return _section(_datasets() | {"fraction": 1.0, "shots": placeholder(int)}, changes)


def adamw(**changes: Any) -> ConfigDict:
    """The optimizer section: CroCo's and MAE's values, without a learning rate and lengths."""
    return _section(
        {
            "learning_rate": placeholder(float),
            "base_learning_rate": placeholder(float),
            "end_learning_rate": 0.0,
            "warmup_steps": placeholder(int),
            "warmup_epochs": placeholder(float),
            "total_steps": placeholder(int),
            "total_epochs": placeholder(float),
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 0.05,
            "clip_norm": 0.0,
            "layer_decay": 1.0,
            "multipliers": (),
            "no_decay": (),
        },
        changes,
    )


def completion_evaluations(**changes: Any) -> ConfigDict:
    """The evaluations of completion. `every=0` leaves one out."""
    values = _section({"every": 10_000, "examples": 512, "pictures": 8}, changes).to_dict()
    return ConfigDict({"completion": values, "correspondence": {name: values[name] for name in ("every", "examples")}})


def encoder(**changes: Any) -> ConfigDict:
    """The model section of tasks on an encoder: every field that is left open comes from the weights of `init`."""
    return _section(
        {
            "encoder_width": placeholder(int),
            "encoder_depth": placeholder(int),
            "encoder_heads": placeholder(int),
            "patch_size": placeholder(int),
            "positions": placeholder(str),
            "class_token": placeholder(bool),
            "position_grid": placeholder(tuple),
        },
        changes,
    )


def depth(**changes: Any) -> ConfigDict:
    """The depth section: a DPT head that predicts ln metres."""
    return _section(_head() | {"loss": "l1", "scale": "log"}, changes)


def depth_evaluations(**changes: Any) -> ConfigDict:
    """The evaluations of depth."""
    values = {"every": 1000, "examples": 1000, "pictures": 4, "cap": placeholder(tuple), "eigen": False}
    return ConfigDict({"depth": _section(values, changes)})


def normals(**changes: Any) -> ConfigDict:
    """The normals section: a DPT head that predicts encodings of unit normals."""
    return _section(_head() | {"loss": "l1"}, changes)


def normals_evaluations(**changes: Any) -> ConfigDict:
    """The evaluations of normals."""
    return ConfigDict({"normals": _section({"every": 1000, "examples": 1000, "pictures": 4}, changes)})


def running(**changes: Any) -> ConfigDict:
    """How an experiment is run, saved and reported."""
    return _section(
        {
            "log_every": 100,
            "checkpoint_every": 2000,
            "keep_checkpoints": 3,
            "keep_every": 0,
            "keep_best": False,
            "on_nonfinite": "stop",
            "max_skipped": 10,
            "accumulation_steps": 1,
            "remat": "dots",
            "scan_layers": True,
            "attention": "xla",
            "workers": 0,
            "threads": 16,
            # data: copies of the model; fsdp: parameters and optimizer sharded; tensor: layers split.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "axis_rules": {"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "mlp": "tensor"},
            "compile_cache": "",
        },
        changes,
    )


def _head() -> dict[str, Any]:
    return {
        "head": "dpt",
        "hooks": placeholder(tuple),
        "normalise_last": True,
        "dpt_stages": (96, 192, 384, 768),
        "dpt_features": 256,
        "drop_path": 0.0,
    }


def _datasets() -> dict[str, Any]:
    return {
        "train": "",
        "validation": "",
        "holdout_fraction": 0.01,
        "size": 256,
        "crop": 224,
        "jitter": 0.0,
        "area": placeholder(tuple),
        "flip": 0.0,
    }


def _section(values: dict[str, Any], changes: dict[str, Any]) -> ConfigDict:
    """Values with changes; an unknown field raises KeyError."""
    section = ConfigDict(values)
    with section.ignore_type():  # a size is one side or both
        for field, value in changes.items():
            if field not in section:
                raise KeyError(f"{field!r} is not one of {', '.join(values)}")
            section[field] = value
    return section
