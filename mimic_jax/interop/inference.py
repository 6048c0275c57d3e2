"""Sizes of a model from its published tensors, and from what else a file or the user tells.

Widths, depths, patch size, class token and position grid are read off the tensors. Heads and rotary positions leave no
trace in them: those are told beside them (`croco_kwargs`, `args.model`) or by flags; heads also follow from published
widths. What is told must agree with the tensors.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mimic_jax.command import InputError
from mimic_jax.interop.formats import Format
from mimic_jax.interop.model_strings import keywords
from mimic_jax.models.sizes import DECODERS, ENCODERS, Sizes
from mimic_jax.nn.positions import sincos_2d

Tensors = Mapping[str, np.ndarray]

_HEADS = {
    "encoder": {sizes["encoder_width"]: sizes["encoder_heads"] for sizes in ENCODERS.values()},
    "decoder": {sizes["decoder_width"]: sizes["decoder_heads"] for sizes in DECODERS.values()},
}
# CroCo's arguments that the tensors show too.
_SHOWN = {
    "patch_size": "patch_size",
    "enc_embed_dim": "encoder_width",
    "enc_depth": "encoder_depth",
    "dec_embed_dim": "decoder_width",
    "dec_depth": "decoder_depth",
}
_READ = (*_SHOWN, "enc_num_heads", "dec_num_heads", "pos_embed", "img_size", "mask_ratio")
# How far apart the same sines are when float32 arithmetic comes to them in other orders.
_CLOSED_FORM = 1e-5


@dataclasses.dataclass(frozen=True)
class Flags:
    """What the user tells: None where nothing."""

    positions: str | None = None
    encoder_heads: int | None = None
    decoder_heads: int | None = None


def infer_sizes(form: Format, tensors: Tensors, metadata: Mapping[str, Any], flags: Flags) -> tuple[Sizes, list[str]]:
    """The sizes, and in words what was assumed.

    Raises:
      InputError: a tensor that shows a size is missing; a size is neither shown nor told; or two sources disagree.
    """
    told, args = _told(metadata)
    if flags.decoder_heads is not None and not form.decoder:
        raise InputError(f"--decoder_heads={flags.decoder_heads}: it has no decoder; leave the flag out")
    patches = _shaped(tensors, "patch_embed.proj.weight", 4)
    if patches[1] != 3 or patches[2] != patches[3] or min(patches) < 1:
        raise InputError(f"tensor patch_embed.proj.weight has shape {patches}; [width, 3, patch, patch] is needed")
    sizes = {
        "encoder_width": patches[0],
        "encoder_depth": _depth(tensors, form.encoder),
        "patch_size": patches[2],
        "class_token": ("encoder", "class_token") in form.names.modules and "cls_token" in tensors,
        "predicts": form.predicts,
    }
    if form.decoder:
        sizes["decoder_width"] = _shaped(tensors, "decoder_embed.weight", 2)[0]
        sizes["decoder_depth"] = _depth(tensors, form.decoder)
    for name, ours in _SHOWN.items():
        if name in told and ours in sizes and told[name] != sizes[ours]:
            raise InputError(f"its model arguments say {name}={told[name]!r}, and its tensors {sizes[ours]}")
    assumed = []
    for part in ("encoder", "decoder") if form.decoder else ("encoder",):
        sizes[f"{part}_heads"] = _heads(part, sizes[f"{part}_width"], told, getattr(flags, f"{part}_heads"), assumed)
    sizes["positions"], sizes["position_grid"] = _positions(form, tensors, sizes, told, flags.positions, assumed)
    if form.decoder and form.predicts:
        sizes["mask_ratio"], sizes["norm_pix_loss"] = _objective(form, told, args, assumed)
    if form.kind == "vit":
        assumed.append("exact GELU and LayerNorm with ε 1e-6, as timm's VisionTransformer has them")
        assumed.append(
            "images normalised by ImageNet's mean and deviation, as everything here; some of timm's weights were "
            "trained with 0.5 and 0.5 (pretrained_cfg says it) and give other features then"
        )
    try:
        return Sizes(**sizes), assumed
    except ValueError as error:
        raise InputError(str(error)) from error


def fixed_table(
    tensors: Tensors, name: str, width: int, class_token: bool, grid: tuple[int, int] | None = None
) -> tuple[tuple[int, int], float]:
    """The grid that a tensor of positions is for, and how far at most it is from fixed sine-cosine rows.

    Args:
      grid: rows and columns; None: as many of each.

    Raises:
      InputError: the tensor's shape is not one of positions on such a grid.
    """
    table = tensors[name]
    rows = table[0] if table.ndim == 3 and len(table) == 1 else table
    patches = len(rows) - class_token if rows.ndim == 2 else 0
    side = math.isqrt(max(patches, 0))
    found = grid or (side, side)
    if rows.ndim != 2 or rows.shape[1] != width or patches < 1 or math.prod(found) != patches:
        on = f"on a grid of {found[0]} × {found[1]}" if grid else "on a square grid"
        raise InputError(f"tensor {name} has shape {table.shape}, which is not {width} numbers for each patch {on}")
    expected = np.concatenate([np.zeros((int(class_token), width), np.float32), sincos_2d(width, *found)])
    return found, float(np.abs(rows - expected).max())


def _told(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The model's arguments under CroCo's names, and those of the run that trained it."""
    args = metadata.get("args", {})
    args = args if isinstance(args, Mapping) else {}
    told = metadata.get("croco_kwargs", {})
    if not isinstance(told, Mapping):
        raise InputError(f"croco_kwargs is of type {type(told).__name__}; a dict is needed")
    model = args.get("model")
    # Without brackets it is a name only, such as MAE's mae_vit_large_patch16.
    said = keywords(model) if isinstance(model, str) and "(" in model else {}
    told, said = ({name: _plain(name, each[name]) for name in _READ if name in each} for each in (told, said))
    for name, value in said.items():
        if name in told and told[name] != value:
            raise InputError(f"croco_kwargs say {name}={told[name]!r}, and args.model {value!r}; it is damaged")
    return said | told, args


def _plain(name: str, value: Any) -> int | float | str | tuple[int, ...] | None:
    if isinstance(value, list | tuple) and all(type(each) is int for each in value):
        return tuple(value)
    if isinstance(value, int | float | str | None):
        return value
    raise InputError(f"its model arguments have {name} of type {type(value).__name__}; a number or text is needed")


def _shaped(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"tensor {name} is missing")
    shape = tensors[name].shape
    if len(shape) != dimensions:
        raise InputError(f"tensor {name} has shape {shape}; {dimensions} dimensions are needed")
    return shape


def _depth(tensors: Tensors, stack: str) -> int:
    """How many blocks a stack has."""
    found = sorted({int(match[1]) for name in tensors if (match := re.match(rf"{stack}\.([0-9]{{1,9}})\.", name))})
    for expected, layer in enumerate(found):
        if layer != expected:
            raise InputError(f"{stack}.{expected} is missing, and there is {stack}.{layer}")
    if not found:
        raise InputError(f"{stack}.0 is missing")
    return len(found)


def _heads(part: str, width: int, told: Mapping[str, Any], flag: int | None, assumed: list[str]) -> int:
    ours, theirs, width_name = f"{part}_heads", f"{part[:3]}_num_heads", f"{part[:3]}_embed_dim"
    heads = told.get(theirs, flag)
    if flag is not None and heads != flag:
        raise InputError(f"--{ours}={flag}: its model arguments say {theirs}={heads!r}; leave the flag out")
    # Arguments that set the width and not the heads leave these at the published code's default, which is not shown.
    if heads is None and width in _HEADS[part] and width_name not in told:
        heads = _HEADS[part][width]
        assumed.append(f"{ours} {heads}, as published for width {width}")
    if heads is None:
        raise InputError(f"nothing in it says how many heads the {part} has (its width is {width}); give --{ours}=N")
    if type(heads) is not int or heads < 1 or width % (4 * heads):
        raise InputError(
            f"{ours} {heads!r}: width {width} of the {part} is no multiple of 4 times that; give --{ours}=N"
        )
    return heads


def _positions(
    form: Format, tensors: Tensors, sizes: dict[str, Any], told: Mapping[str, Any], flag: str | None, assumed: list[str]
) -> tuple[str, tuple[int, int] | None]:
    """Which positions, and the grid that added ones are for."""
    name = form.names.encoder_positions
    said = _position_argument(told["pos_embed"]) if "pos_embed" in told else None
    if flag and said and flag != said:
        raise InputError(f"--positions={flag}: its model arguments say pos_embed={said}; leave the flag out")
    chosen = said or flag
    if chosen == "rope100":
        return chosen, None
    if name not in tensors:
        if chosen is None:
            raise InputError("nothing in it says which positions it has; give --positions=rope100 (or =cosine)")
        if chosen == "learned":
            raise InputError(f"--positions=learned: tensor {name} is missing")
        grid = _image_grid(told, sizes["patch_size"])
        if grid is None:
            assumed.append("patches one unit apart on grids of any size, as nothing says which was trained on")
        return chosen, grid
    grid, off = fixed_table(tensors, name, sizes["encoder_width"], sizes["class_token"])
    if (trained := _image_grid(told, sizes["patch_size"])) not in (None, grid):
        raise InputError(f"img_size={told['img_size']!r} makes a grid of {trained}, and {name} is for {grid}")
    if chosen == "learned" or (off > _CLOSED_FORM and form.kind == "vit" and chosen is None):
        if form.kind != "vit":
            raise InputError("--positions=learned is for timm's encoders only; leave the flag out")
        assumed.append(f"{name} is for a square grid, {grid[0]} × {grid[1]}")
        return "learned", grid
    check_closed_form(name, off, assumed)
    return "cosine", grid


def check_closed_form(name: str, off: float, assumed: list[str]) -> None:
    """Raises InputError where a table is none of fixed positions; says so where it is not one to the last bit."""
    if not off <= _CLOSED_FORM:  # NaN is refused too
        raise InputError(f"tensor {name} is off the fixed sine-cosine rows, which ours are, by {off:.2g}")
    if off:
        assumed.append(f"{name}: computed here; the file's differs in the last bits, by at most {off:.1g}")


def _position_argument(value: Any) -> str:
    if value == "cosine":
        return "cosine"
    if isinstance(value, str) and re.fullmatch(r"RoPE100(\.0*)?", value):
        return "rope100"
    raise InputError(f"pos_embed={value!r} is not supported; 'cosine' and 'RoPE100' are")


def _image_grid(told: Mapping[str, Any], patch: int) -> tuple[int, int] | None:
    size = told.get("img_size")
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else size
    if not isinstance(both, tuple) or len(both) != 2 or min(both) < patch:
        raise InputError(f"img_size={size!r} is no size of images that hold a patch of {patch} pixels")
    return both[0] // patch, both[1] // patch


def _objective(
    form: Format, told: Mapping[str, Any], args: Mapping[str, Any], assumed: list[str]
) -> tuple[float, bool]:
    """Mask ratio, and whether target patches are normalised."""
    ratio = told.get("mask_ratio", args.get("mask_ratio"))
    if ratio is None:
        ratio = form.mask_ratio
        assumed.append(f"mask_ratio {ratio}, as published")
    if type(ratio) is not float or not 0 < ratio < 1:
        raise InputError(f"mask_ratio {ratio!r} is no number between 0 and 1")
    normalised = args.get("norm_pix_loss")
    if not isinstance(normalised, int | None) or normalised not in (None, 0, 1):
        raise InputError(f"args.norm_pix_loss {normalised!r} is neither true nor false")
    if normalised is None:
        assumed.append("norm_pix_loss True, as published")
    return ratio, normalised is None or bool(normalised)
