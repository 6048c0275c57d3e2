"""Config fields that had other names once: old workdirs resume, and old runs are compared with new ones.

Never imports jax.
"""

from typing import Any

# Old name → new name. A name that ends in a dot is a section.
FIELDS = {
    "objective": "model.kind",
    "ema": "ema_decay",
    "accumulate": "run.accumulation_steps",
    "skip_at_most": "run.max_skipped",
    **{
        name: f"run.{name}"
        for name in (
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "keep_every",
            "on_nonfinite",
            "remat",
            "scan_layers",
            "attention",
        )
    },
    "mesh.": "run.mesh.",
    "axis_rules.": "run.axis_rules.",
    "data.workers": "run.workers",
    "data.threads": "run.threads",
    "eval.data": "data.validation",
    "eval.held_out": "data.holdout_fraction",
    "eval.every": "evals.completion.every",
    "eval.pairs": "evals.completion.examples",
    "eval.pictures": "evals.completion.pictures",
    "optimizer.schedule_steps": "optimizer.total_steps",
    "optimizer.schedule_epochs": "optimizer.total_epochs",
}
_VALUES = {("run.remat", "blocks"): "full"}
# What fields that were added later would have been.
_ADDED = {
    "task": "completion",
    "steps": None,
    "epochs": None,
    "data.jitter": 0.0,
    "data.swap": 0.0,
    "data.area": None,
    "data.flip": 0.0,
    "optimizer.learning_rate": None,
    "optimizer.end_learning_rate": 0.0,
    "optimizer.warmup_steps": None,
    "optimizer.warmup_epochs": None,
    "optimizer.total_steps": None,
    "optimizer.total_epochs": None,
    "optimizer.layer_decay": 1.0,
    "optimizer.multipliers": [],
    "optimizer.no_decay": [],
}


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A config of any age with today's names.

    Args:
      config: nested sections, as config.json has them.
    """
    if "objective" not in config:
        return config
    flat = upgraded_fields(flatten(config))
    # One interval and number of pairs was for both evaluations.
    both = ("every", "examples")
    of_both = {f"evals.correspondence.{name}": flat.get(f"evals.completion.{name}") for name in both}
    flat = _ADDED | {"residual_dtype": flat.get("compute_dtype")} | of_both | flat
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        inside = nested
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[field] = value
    return nested


def upgraded_fields(flat: dict[str, Any]) -> dict[str, Any]:
    """Fields by their names with dots, with today's names and values."""
    renamed = {_new_name(name): value for name, value in flat.items()}
    return {
        name: _VALUES.get((name, value), value) if isinstance(value, str) else value for name, value in renamed.items()
    }


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested sections by their names with dots."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _new_name(name: str) -> str:
    if name in FIELDS:
        return FIELDS[name]
    section = name.partition(".")[0] + "."
    return FIELDS[section] + name.removeprefix(section) if section in FIELDS else name
