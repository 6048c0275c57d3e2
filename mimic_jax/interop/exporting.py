"""Weights as the files that other systems read, each with a model card beside it."""

import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path

import jax
import numpy as np

from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.interop import card, names, weights
from mimic_jax.interop.names import Names, Tensors
from mimic_jax.interop.tensor_files import write_pth, write_safetensors
from mimic_jax.interop.weights import Weights
from mimic_jax.models.description import to_json
from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.nn.positions import sincos_2d

# What each format holds, and how its file's name ends; a folder's name has no ending.
FORMATS = {
    "croco_pth": ("a CroCo without class token, of rotary positions or of cosine ones on a square grid", (".pth",)),
    "mimic_pth": ("a CroCo with class token, of cosine positions on a square grid", (".pth",)),
    "mae_pth": ("an MAE with class token, of cosine positions on a square grid", (".pth",)),
    "timm_vit": ("an encoder of added positions (timm's VisionTransformer has no others)", (".pth", ".safetensors")),
    "multimae": ("an encoder with class token and added positions", (".pth",)),
    "safetensors": ("any model", (".safetensors",)),
    "orbax": ("any model", ("",)),
}
_TABLES = {"croco": names.CROCO, "mimic": names.MIMIC, "mae": names.MAE, "timm": names.TIMM}
_ENDINGS = {ending for _, endings in FORMATS.values() for ending in endings if ending}


def export(
    whole: Weights,
    output: Path,
    format: str,
    *,
    image_size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes weights in a format, and their model card beside them as OUTPUT.md.

    Args:
      output: the file, or the folder for "orbax".
      format: one of FORMATS.
      image_size: height and width, in pixels, of the images that added positions were trained on, where the weights do
        not know it.
      overwrite: whether an export that is there already is replaced.

    Returns:
      What was written: the file or folder, and the card.

    Raises:
      InputError: the format cannot hold the model, lacks a position grid, does not fit the output's name, or needs a
        package that is not installed; or the output is there already, or cannot be written.
    """
    if output.name in ("", ".."):
        raise InputError(f"--output={output} has no name; give a file, or a folder for --format=orbax")
    beside = output.with_name(f"{output.name}.md")
    try:
        _check_output(output, beside, format, overwrite)
        whole = _with_grid(whole, image_size) if image_size else whole
        _check_holds(whole, format)
        output.parent.mkdir(parents=True, exist_ok=True)
        if format == "orbax":
            parameters = sum(leaf.size for leaf in jax.tree.leaves(whole.params))
            _write_folder(whole, output)
        else:
            parameters = _write_file(whole, output, format)
        files.write(beside, card.draw(whole, output.name, format, parameters).encode())
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); give another --output") from error
    return [output, beside]


def holds(format: str, kind: str, sizes: Sizes) -> bool:
    """Whether a format can hold a model, or its encoder where that is all that the format is for."""
    rotary = ROPE_BASES[sizes.positions] is not None
    # What fills published tables of a decoder: fixed rows of as many rows as columns, which their lengths do not tell.
    rows, columns = sizes.position_grid or (1, 1)
    published = sizes.positions == "cosine" and rows == columns
    if format == "croco_pth":
        return kind == "croco" and not sizes.class_token and (rotary or published)
    if format in ("mimic_pth", "mae_pth"):
        right = "croco" if format == "mimic_pth" else "mae"
        return kind == right and sizes.class_token and sizes.predicts and published
    if format == "timm_vit":
        return not rotary
    return format in ("safetensors", "orbax") or sizes.class_token


def published_names(kind: str, sizes: Sizes) -> str:
    """Which published system a model has its names from: "croco", "mimic", "mae", or "timm" for an encoder alone."""
    if kind == "croco":
        return "mimic" if sizes.class_token else "croco"
    return {"mae": "mae", "vit": "timm"}[kind]


def encoder_alone(sizes: Sizes) -> Sizes:
    """The sizes of a model's encoder."""
    return dataclasses.replace(sizes, decoder_width=0, decoder_depth=0, decoder_heads=0)


def fixed_positions(sizes: Sizes, table: Names) -> Tensors:
    """The tables of fixed positions that published state dicts have beside their parameters.

    CroCo's are [patches, width]; the others' are [1, tokens, width], with a row of zeros for a class token. There are
    none of rotary positions, nor where the grid that the model was trained on is not known.
    """
    if ROPE_BASES[sizes.positions] is not None or sizes.position_grid is None:
        return {}

    def rows(width: int) -> np.ndarray:
        known = sincos_2d(width, *sizes.position_grid)
        if table is names.CROCO:
            return known
        return np.concatenate([np.zeros((int(sizes.class_token), width), np.float32), known])[None]

    tables = {}
    if sizes.positions == "cosine":
        tables[table.encoder_positions] = rows(sizes.encoder_width)
    if table.decoder_positions:
        tables[table.decoder_positions] = rows(sizes.decoder_width)
    return tables


def _check_output(output: Path, beside: Path, format: str, overwrite: bool) -> None:
    if format not in FORMATS:
        raise InputError(f"--format={format} is none of {', '.join(FORMATS)}")
    endings = FORMATS[format][1]
    if format == "orbax":
        if output.suffix in _ENDINGS:
            raise InputError(f"--output={output}: --format=orbax writes a folder; give a name without {output.suffix}")
    elif output.suffix not in endings:
        raise InputError(f"--output={output} must end in {' or '.join(endings)} for --format={format}")
    for path in (output, beside):
        if not path.exists():
            continue
        if not overwrite:
            raise InputError(f"{path}: is there already; give another --output, or --overwrite to replace it")
        is_folder = format == "orbax" and path is output
        alike = (path / weights.DESCRIPTION).is_file() if is_folder else path.is_file()
        if not alike:
            raise InputError(f"{path}: is no {'weights folder' if is_folder else 'file'}; --overwrite leaves it alone")


def _with_grid(whole: Weights, image_size: tuple[int, int]) -> Weights:
    sizes, given = whole.sizes, "x".join(map(str, image_size))
    if ROPE_BASES[sizes.positions] is not None:
        raise InputError(f"--image_size={given}: rotary positions hold for any size; leave the flag out")
    if min(image_size) < 1 or any(side % sizes.patch_size for side in image_size):
        raise InputError(f"--image_size={given}: the weights' patch size, {sizes.patch_size}, does not divide it")
    grid = (image_size[0] // sizes.patch_size, image_size[1] // sizes.patch_size)
    if sizes.position_grid not in (None, grid):
        known = "x".join(str(side * sizes.patch_size) for side in sizes.position_grid)
        raise InputError(f"--image_size={given}: these weights' positions are of {known} images; leave the flag out")
    return dataclasses.replace(whole, sizes=dataclasses.replace(sizes, position_grid=grid))


def _check_holds(whole: Weights, format: str) -> None:
    sizes = whole.sizes
    if not holds(format, whole.kind, sizes):
        others = ", ".join(each for each in FORMATS if holds(each, whole.kind, sizes))
        raise InputError(
            f"--format={format} holds {FORMATS[format][0]}; these weights are {card.describe(whole)}: use {others}"
        )
    needs_grid = format not in ("safetensors", "orbax") and ROPE_BASES[sizes.positions] is None
    if needs_grid and sizes.position_grid is None:
        raise InputError(
            f"--format={format} has a table of positions, and these weights do not say for which image size: "
            "give --image_size=224, or whatever they were trained on"
        )


def _write_file(whole: Weights, output: Path, format: str) -> int:
    """Writes a file of tensors; the number of parameters in it."""
    if format == "multimae":
        tensors = _multimae(whole)
        write_pth(output, tensors)
        return sum(tensor.size for name, tensor in tensors.items() if name != names.MULTIMAE.encoder_positions)
    kind, sizes = ("vit", encoder_alone(whole.sizes)) if format == "timm_vit" else (whole.kind, whole.sizes)
    chosen = published_names(kind, sizes)
    parameters = names.to_published(whole.model(), _TABLES[chosen])
    tensors = parameters | fixed_positions(sizes, _TABLES[chosen])
    # Published code reads what it knows and passes this over; with it nothing is left to be inferred.
    described = json.dumps(to_json(kind, sizes, whole.seen) | {"names": chosen, "about": whole.about})
    if output.suffix == ".safetensors":
        write_safetensors(output, tensors, {"mimic_jax": described})
    elif format == "croco_pth":
        write_pth(output, tensors, croco_kwargs=_croco_kwargs(sizes), mimic_jax=described)
    else:
        write_pth(output, tensors, mimic_jax=described)
    return sum(tensor.size for tensor in parameters.values())


def _write_folder(whole: Weights, output: Path) -> None:
    beside = output.name + "." + uuid.uuid4().hex
    new, old = output.with_name(f"{beside}.tmp"), output.with_name(f"{beside}.old.tmp")
    try:
        weights.save_folder(whole, new)
        if output.exists():
            os.replace(output, old)
        try:
            os.replace(new, output)
        except OSError:
            if old.exists():
                os.replace(old, output)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    files.sync(output.parent)


def _croco_kwargs(sizes: Sizes) -> dict[str, int | float | str | tuple[int, int]]:
    """What naver/croco's CroCoNet is built with. Of rotary models it does not matter for which image size."""
    kwargs = {
        "enc_embed_dim": sizes.encoder_width,
        "enc_depth": sizes.encoder_depth,
        "enc_num_heads": sizes.encoder_heads,
        "dec_embed_dim": sizes.decoder_width,
        "dec_depth": sizes.decoder_depth,
        "dec_num_heads": sizes.decoder_heads,
        "patch_size": sizes.patch_size,
        "mask_ratio": sizes.mask_ratio,
        "pos_embed": {"cosine": "cosine", "rope100": "RoPE100"}[sizes.positions],
    }
    if sizes.position_grid is not None:
        height, width = (side * sizes.patch_size for side in sizes.position_grid)
        kwargs["img_size"] = height if height == width else (height, width)
    return kwargs


def _multimae(whole: Weights) -> Tensors:
    """The encoder as MultiMAE has it: the class token carries its position, and the others' table is a picture."""
    sizes, table = whole.sizes, names.MULTIMAE.encoder_positions
    tensors = names.to_published(whole.model(), names.MULTIMAE)
    if sizes.positions == "cosine":
        tensors[table] = fixed_positions(sizes, names.TIMM)[names.TIMM.encoder_positions]
    first, rows = tensors[table][:, :1], tensors[table][:, 1:]
    tensors["global_tokens"] = tensors["global_tokens"] + first
    tensors[table] = rows.reshape(1, *sizes.position_grid, -1).transpose(0, 3, 1, 2)
    return tensors
