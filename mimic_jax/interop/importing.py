"""Files of published weights → our models. Nothing is guessed: what a file does not tell is asked for."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.interop.formats import FORMATS, Format, check_format, detect
from mimic_jax.interop.inference import Flags, check_closed_form, fixed_table, infer_sizes
from mimic_jax.interop.names import Names, from_published, places
from mimic_jax.interop.tensor_files import read_tensors
from mimic_jax.interop.weights import Weights
from mimic_jax.models.description import Seen, seen_from_json
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes

# Our safetensors say by this what they are.
SELF_DESCRIPTION = "mimic_jax"

# What every token of a published model passes through, or meets.
_USED = ("cls_token", "reg_token", "register_tokens", "dist_token", "norm_pre")

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Group:
    """Tensors of one shape, one a layer, or a single one. name: such as "blocks.0–11.attn.qkv.weight"."""

    name: str
    shape: tuple[int, ...]
    count: int

    @property
    def parameters(self) -> int:
        return self.count * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found in a file.

    format: which of formats.FORMATS.
    read: the tensors that became parameters, in the model's order.
    missing: what such files have and this one has not, and why that is no harm.
    left_over: reason → names of the tensors that were not read, and of other entries of the file.
    assumed: what neither the tensors nor the file tell.
    """

    format: str
    kind: str
    sizes: Sizes
    read: tuple[Group, ...]
    missing: tuple[str, ...]
    left_over: dict[str, tuple[str, ...]]
    assumed: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(group.parameters for group in self.read)


def import_file(
    path: Path,
    format: str = "auto",
    *,
    positions: str | None = None,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
) -> tuple[Weights, Report]:
    """Weights from a .pth or .safetensors file of a published system, or of our own export.

    Args:
      format: which of formats.FORMATS; "auto": by the names of the tensors.
      positions, encoder_heads, decoder_heads: as in `Sizes`, where the file does not tell.

    Raises:
      InputError: the file cannot be read, is of no known format, lacks a tensor or has one of another shape, holds
        tensors that the model would have to use and has no place for, does not tell a size, or contradicts itself or
        the flags. The message names file and tensor or flag.
    """
    tensors, metadata = read_tensors(path)
    try:
        weights, report = _import(tensors, metadata, format, Flags(positions, encoder_heads, decoder_heads))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = dict(weights.about)
    if "origin" in about:
        about["exported_from"] = about["origin"]
    about |= {"origin": path.name, "format": report.format, "sha256": digest}
    return dataclasses.replace(weights, about=about), report


def _import(tensors: Tensors, metadata: Mapping[str, Any], format: str, flags: Flags) -> tuple[Weights, Report]:
    about, seen = {}, None
    if SELF_DESCRIPTION in metadata:
        # What was known of the weights when they were exported, the config of their training above all, still holds.
        format, sizes, about, seen = _described(metadata[SELF_DESCRIPTION], format, flags)
        form, assumed = FORMATS[format], []
    else:
        if format == "auto":
            format = detect(tensors)
        check_format(format, tensors)
        form = FORMATS[format]
        _refuse_unusable(tensors, form)
        sizes, assumed = infer_sizes(form, tensors, metadata, flags)
    model = abstract(form.kind, sizes)
    wanted = places(model, form.names)
    for name in wanted:
        if name in tensors and tensors[name].dtype not in (np.float32, np.float64):
            raise InputError(f"tensor {name} holds {tensors[name].dtype}; floating point is needed")
        if name in tensors and not np.isfinite(tensors[name]).all():
            raise InputError(f"tensor {name} has values that are not finite; its training had gone wrong")
    params = from_published(model, tensors, form.names)
    if any(tensors[name].dtype == np.float64 for name in wanted):
        assumed.append("float32 is exact enough: tensors of float64 were rounded to it")
    fixed = _check_fixed(tensors, sizes, form.names, assumed)
    left_over = _left_over(tensors, [*wanted, *fixed], form, metadata.get("others", []))
    missing = _missing(tensors, sizes, form)
    groups = _groups(model, form.names)
    report = Report(format, form.kind, sizes, groups, missing, left_over, tuple(dict.fromkeys(assumed)))
    return Weights(form.kind, sizes, params, about, seen), report


def _described(text: Any, format: str, flags: Flags) -> tuple[str, Sizes, Any, Seen | None]:
    """Format, sizes, origin and training image sizes by a file's own description. Flags may only repeat it."""
    try:
        described = json.loads(text)
        name, kind, sizes = described["names"], described["kind"], _described_sizes(described["sizes"])
        if name not in FORMATS or FORMATS[name].kind != kind:
            raise ValueError(f"names {name!r} do not go with kind {kind!r}")
        about = described.get("about", {})
        if not isinstance(about, dict):
            raise ValueError(f"about is {about!r}")
        seen = seen_from_json(described)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"its {SELF_DESCRIPTION} metadata is damaged ({error}); export it again") from error
    for flag, given in {"format": None if format == "auto" else format, **vars(flags)}.items():
        said = name if flag == "format" else getattr(sizes, flag)
        if given not in (None, said):
            raise InputError(f"--{flag}={given}: the file says {said}; leave the flag out")
    return name, sizes, about, seen


def _described_sizes(described: dict[str, Any]) -> Sizes:
    for field in dataclasses.fields(Sizes):
        value = described.get(field.name, field.default)
        if isinstance(field.type, type) and type(value) is not field.type:
            raise ValueError(f"{field.name} is {value!r}")
    grid = described.get("position_grid")
    if grid is not None and (len(grid) != 2 or {type(side) for side in grid} != {int} or min(grid) < 1):
        raise ValueError(f"position_grid is {grid!r}")
    return Sizes(**described | {"position_grid": grid and tuple(grid)})


def _refuse_unusable(tensors: Tensors, form: Format) -> None:
    """Refuses what every token would pass through and ours has no place for, or lacks."""
    for name in tensors:
        ours = name == "cls_token" and ("encoder", "class_token") in form.names.modules
        if name.startswith(_USED) and not ours:
            raise InputError(f"tensor {name} has no place in our model, which would compute something else without it")
    if form.kind == "vit" and "norm.weight" not in tensors and "fc_norm.weight" in tensors:
        raise InputError("it has fc_norm, a norm of pooled features, and no norm.weight: its tokens have no final norm")


def _check_fixed(tensors: Tensors, sizes: Sizes, names: Names, assumed: list[str]) -> list[str]:
    """The tensors that are fixed positions, once it is sure that ours are the same."""
    tables = {names.encoder_positions: sizes.encoder_width, names.decoder_positions: sizes.decoder_width}
    if sizes.positions == "learned":
        del tables[names.encoder_positions]
    found = {name: width for name, width in tables.items() if name in tensors and width}
    for name, width in found.items():
        if sizes.positions == "rope100":
            raise InputError(f"it has added positions ({name}), and is said to have rotary ones; leave --positions out")
        _, off = fixed_table(tensors, name, width, sizes.class_token, sizes.position_grid)
        check_closed_form(name, off, assumed)
    return list(found)


def _left_over(tensors: Tensors, read: list[str], form: Format, others: list[str]) -> dict[str, tuple[str, ...]]:
    """Reason → names of what was not read; refuses what the parts that were read would have to use."""
    read = set(read)
    parts = {name.split(".")[0] for name in read}
    found: dict[str, list[str]] = {}
    for name in tensors:
        if name in read:
            continue
        reason = next((reason for beginning, reason in form.ignored.items() if name.startswith(beginning)), None)
        if reason is None and name.split(".")[0] in parts:
            raise InputError(f"tensor {name} has no place in our model, which would compute something else without it")
        found.setdefault(reason or "no part of the model", []).append(name)
    if others:
        found["other entries of the file"] = others
    return {reason: tuple(names) for reason, names in found.items()}


def _missing(tensors: Tensors, sizes: Sizes, form: Format) -> tuple[str, ...]:
    missing = []
    if form.decoder and not sizes.predicts:
        absent = [name for name in ("mask_token", "prediction_head") if name not in tensors]
        missing.append(f"{', '.join(absent)}: what was read encodes and decodes, and predicts no pixels")
    if sizes.positions != "rope100":
        tables = (form.names.encoder_positions, form.names.decoder_positions if form.decoder else None)
        missing += [f"{name}: fixed positions are computed" for name in tables if name and name not in tensors]
    return tuple(missing)


def _groups(model: nnx.Module, names: Names) -> tuple[Group, ...]:
    order = {path: index for index, path in enumerate(names.modules)}
    found = places(model, names).items()
    layers: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, place in sorted(found, key=lambda item: order.get(item[1].path, order.get(item[1].path[:-1], -1))):
        if place.layer is not None:
            name = name.replace(f".{place.layer}.", ".{layer}.", 1)
        layers.setdefault((name, place.shape), []).append(place.layer or 0)
    return tuple(
        Group(name.format(layer=f"0–{max(found)}" if max(found) else "0"), shape, len(found))
        for (name, shape), found in layers.items()
    )
