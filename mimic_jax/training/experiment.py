"""What a config describes, checked before anything is built."""

import dataclasses
import operator
from collections.abc import Sequence

from ml_collections import ConfigDict

from mimic_jax.command import InputError
from mimic_jax.data.augment import Augmentation
from mimic_jax.models.kinds import OBJECTIVES
from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.nn.compute import ATTENTION, REMAT

Side = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a config that are more than numbers to pass on.

    sizes: the model's, with the grid that its added positions are trained on.
    size, crop: (height, width) of views as they are read, and of what the model sees of them.
    records: pairs read for a step. A batch of single images takes half as many, where both views are images.
    skip_at_most: how many steps without a finite loss and gradient are left out before the run stops.
    """

    sizes: Sizes
    augmentation: Augmentation
    size: Side
    crop: Side
    records: int
    skip_at_most: int


def check(config: ConfigDict) -> Experiment:
    """Checks what can be checked of a config without its data.

    Raises:
      InputError: names the field that is missing or cannot be used.
    """
    try:
        return _check(config)
    except (AttributeError, KeyError) as error:
        raise InputError(f"--config: the file lacks a field: {' '.join(str(error).split())}") from error
    except (TypeError, IndexError) as error:
        raise InputError(f"--config: a field has a value of the wrong type: {' '.join(str(error).split())}") from error


def sizes_of(config: ConfigDict | dict) -> Sizes:
    """The model's sizes. Added positions are those of the grid that training sees, where the config names no other.

    Raises:
      InputError: a field is unknown, or its value cannot be used.
    """
    fields = dict(config["model"])
    crop, patch = sides(config["data"]["crop"], "config.data.crop"), fields.get("patch_size", Sizes.patch_size)
    added = ROPE_BASES.get(fields.get("positions", Sizes.positions), 0) is None
    if added and patch > 0 and fields.get("position_grid") is None:
        fields["position_grid"] = (crop[0] // patch, crop[1] // patch)
    try:
        return Sizes(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.model: {error}") from error


def sides(value: int | Sequence[int], field: str) -> Side:
    """(height, width) of a size that is given as the side of a square or as both.

    Raises:
      InputError: the value is neither; `field` names it.
    """
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(side, int) and side > 0 for side in both):
        raise InputError(f"{field}={value!r} must be a side in pixels, or (height, width)")
    return both


def total_steps(config: ConfigDict, examples: int) -> tuple[int, int, int]:
    """How many steps the run has, its warm-up, and its whole schedule, of which the run may be a part.

    Args:
      examples: in one epoch; `config.batch_size` of them are in a step.

    Raises:
      InputError: a length is given neither in steps nor in epochs, or they do not go together.
    """
    steps = _length(config, "steps", "epochs", examples, config.batch_size)
    warmup = _length(config.optimizer, "warmup_steps", "warmup_epochs", examples, config.batch_size, "optimizer.")
    schedule = _length(config.optimizer, "schedule_steps", "schedule_epochs", examples, config.batch_size, "optimizer.")
    if steps < 1:
        raise InputError(f"config.steps={steps} must be at least 1")
    if not 0 <= warmup < schedule:
        raise InputError(
            f"config.optimizer.warmup_steps={warmup} must be below "
            f"config.optimizer.schedule_steps={schedule} (config.steps={steps})"
        )
    return steps, warmup, schedule


def _length(fields, in_steps: str, in_epochs: str, examples: int, batch: int, prefix: str = "") -> int:
    """In steps where it is given so, else from epochs."""
    if fields.get(in_steps) is not None:
        return fields[in_steps]
    if fields.get(in_epochs) is None:
        raise InputError(f"config.{prefix}{in_steps} is not set: give it, or config.{prefix}{in_epochs}")
    return round(fields[in_epochs] * examples / batch)


def _check(config: ConfigDict) -> Experiment:
    if config.objective not in OBJECTIVES:
        raise InputError(f"config.objective={config.objective!r} is none of {sorted(OBJECTIVES)}")
    at_least_1 = ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints", "data.threads")
    for field in (*at_least_1, "eval.pairs"):
        value = operator.attrgetter(field)(config)
        if value < 1:
            raise InputError(f"config.{field}={value} must be at least 1")
    at_least_0 = ("eval.every", "eval.pictures", "keep_every", "data.workers", "optimizer.clip_norm", "skip_at_most")
    for field in at_least_0:
        value = operator.attrgetter(field)(config)
        if value < 0:
            raise InputError(f"config.{field}={value} must not be below 0, which means none")
    if config.keep_every % config.checkpoint_every:
        raise InputError(
            f"config.keep_every={config.keep_every} must be a multiple of "
            f"config.checkpoint_every={config.checkpoint_every}, as other steps have no checkpoint"
        )
    _check_compute(config)
    if not 0 <= config.ema < 1:
        raise InputError(f"config.ema={config.ema} is the decay of an average; it must be in [0, 1), 0 for none")
    if config.on_nonfinite not in ("stop", "skip"):
        raise InputError(f"config.on_nonfinite={config.on_nonfinite!r} must be 'stop' or 'skip'")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"config.seed={config.seed} must be from 0 to 2³² − 1")
    sizes = sizes_of(config)
    _check_model(config, sizes)
    size, crop = sides(config.data.size, "config.data.size"), sides(config.data.crop, "config.data.crop")
    patch = sizes.patch_size
    if any(inner % patch or inner > outer for inner, outer in zip(crop, size, strict=True)):
        raise InputError(
            f"config.data.crop={config.data.crop} must be a multiple of config.model.patch_size={patch} "
            f"and at most config.data.size={config.data.size}"
        )
    patches = (crop[0] // patch) * (crop[1] // patch)
    if not 0 < sizes.visible(patches) < patches:
        raise InputError(
            f"config.model.mask_ratio={sizes.mask_ratio} of {patches} patches leaves {sizes.visible(patches)} visible; "
            "some must be hidden and some not"
        )
    if not 0 <= config.eval.held_out < 1:
        raise InputError(f"config.eval.held_out={config.eval.held_out} is the share of scenes; it must be in [0, 1)")
    if not config.data.train:
        raise InputError("config.data.train is not set: give --config.data.train=DATASET, a folder that mine made")
    skip_at_most = config.skip_at_most if config.on_nonfinite == "skip" else 0
    return Experiment(sizes, _augmentation(config, crop), size, crop, _records(config), skip_at_most)


def _check_compute(config: ConfigDict) -> None:
    for field, known in (("compute_dtype", ("float32", "bfloat16")), ("remat", REMAT), ("attention", ATTENTION)):
        if config[field] not in known:
            raise InputError(f"config.{field}={config[field]!r} must be {' or '.join(known)}")
    if config.attention == "cudnn" and config.compute_dtype != "bfloat16":
        raise InputError("config.attention='cudnn' computes in 16 bits: set config.compute_dtype=bfloat16 as well")


def _check_model(config: ConfigDict, sizes: Sizes) -> None:
    for field in ("decoder_width", "decoder_depth", "decoder_heads"):
        if getattr(sizes, field) < 1:
            raise InputError(f"config.model.{field}={getattr(sizes, field)} must be at least 1 to complete views")
    if not sizes.predicts:
        raise InputError("config.model.predicts=False: there would be nothing to train; leave the field out")
    views = OBJECTIVES[config.objective].views
    if (config.data.views == "pair") != (views == 2):
        needed = "'pair'" if views == 2 else "'first' or 'both'"
        raise InputError(f"config.data.views={config.data.views!r}: objective {config.objective!r} needs {needed}")


def _augmentation(config: ConfigDict, crop: Side) -> Augmentation:
    fields = {name: config.data[name] for name in ("views", "jitter", "swap", "area", "flip") if name in config.data}
    if fields.get("area") is not None:
        fields["area"] = tuple(fields["area"])
    try:
        return Augmentation(crop, **fields)
    except ValueError as error:
        raise InputError(f"config.data: {error}") from error


def _records(config: ConfigDict) -> int:
    if config.data.views != "both":
        return config.batch_size
    if config.batch_size % 2:
        raise InputError(f"config.batch_size={config.batch_size} must be even: both views of each pair are images")
    return config.batch_size // 2
