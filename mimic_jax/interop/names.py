"""Our parameters ↔ tensors under the names that published code has for them.

Ours differ in three ways: the layers of a stack share one array with a leading layer axis; kernels are
[in…, out…] where PyTorch's are [out, in]; attention kernels keep heads apart as [width, 3, heads, head_dim] or such.
Both directions only move numbers: there and back is the identity, bit for bit.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from mimic_jax.command import InputError

Path = tuple[str, ...]
Tensors = dict[str, np.ndarray]

_SELF_ATTENTION_BLOCK = {
    ("norm1",): "norm1",
    ("attention", "qkv"): "attn.qkv",
    ("attention", "out"): "attn.proj",
    ("norm2",): "norm2",
    ("mlp", "expand"): "mlp.fc1",
    ("mlp", "project"): "mlp.fc2",
}
_DECODER_BLOCK = _SELF_ATTENTION_BLOCK | {
    ("norm_context",): "norm_y",
    ("cross_attention", "query"): "cross_attn.projq",
    ("cross_attention", "key"): "cross_attn.projk",
    ("cross_attention", "value"): "cross_attn.projv",
    ("cross_attention", "out"): "cross_attn.proj",
    ("norm3",): "norm3",
}


@dataclasses.dataclass(frozen=True)
class Names:
    """What a published system calls things.

    modules: our module or parameter → its name; `{layer}` where our parameters are stacked.
    encoder_positions, decoder_positions: tensors of added positions, which ours computes where they are fixed.
    """

    modules: Mapping[Path, str]
    encoder_positions: str | None = None
    decoder_positions: str | None = None


def _blocks(stack: str, block: Mapping[Path, str], path: Path) -> dict[Path, str]:
    return {(*path, *ours): f"{stack}.{{layer}}.{name}" for ours, name in block.items()}


def _encoder(blocks: str, norm: str) -> dict[Path, str]:
    return {
        ("encoder", "patch_embed"): "patch_embed.proj",
        **_blocks(blocks, _SELF_ATTENTION_BLOCK, ("encoder", "blocks")),
        ("encoder", "norm"): norm,
    }


_CLASS_TOKEN = {("encoder", "class_token"): "cls_token"}
_VIT = _CLASS_TOKEN | _encoder("blocks", "norm")

CROCO = Names(
    {
        ("mask_token",): "mask_token",
        **_encoder("enc_blocks", "enc_norm"),
        ("decoder_embed",): "decoder_embed",
        **_blocks("dec_blocks", _DECODER_BLOCK, ("decoder",)),
        ("decoder_norm",): "dec_norm",
        ("prediction_head",): "prediction_head",
    },
    encoder_positions="enc_pos_embed",
    decoder_positions="dec_pos_embed",
)
_MAE_ENDS = {
    ("mask_token",): "mask_token",
    ("decoder_embed",): "decoder_embed",
    ("decoder_norm",): "decoder_norm",
    ("prediction_head",): "decoder_pred",
}
MAE = Names(
    _VIT | _MAE_ENDS | _blocks("decoder_blocks", _SELF_ATTENTION_BLOCK, ("decoder",)), "pos_embed", "decoder_pos_embed"
)
MIMIC = Names(
    _VIT | _MAE_ENDS | _blocks("decoder_blocks_croco", _DECODER_BLOCK, ("decoder",)), "pos_embed", "decoder_pos_embed"
)
TIMM = Names(_VIT, "pos_embed")
# The final norm has no place in MultiMAE's encoder: its heads have norms of their own.
MULTIMAE = Names(
    {
        ("encoder", "class_token"): "global_tokens",
        ("encoder", "patch_embed"): "input_adapters.rgb.proj",
        **_blocks("encoder", _SELF_ATTENTION_BLOCK, ("encoder", "blocks")),
    },
    "input_adapters.rgb.pos_emb",
)

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a published tensor is in our model.

    path: our parameter. layer: which layer of it, where it is stacked. shape: as published.
    """

    path: Path
    layer: int | None
    shape: tuple[int, ...]


def places(model: nnx.Module, names: Names) -> dict[str, Place]:
    """Every tensor that the model's parameters are under published names, and where it is.

    Parameters that the published system has no name for are left out, as are fixed positions.

    Args:
      model: gives the shapes; `nnx.eval_shape` of one is enough.
    """
    found = {}
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        shape = parameter.get_value().shape
        if path == ("encoder", "positions"):
            name = names.encoder_positions
        elif path in names.modules:
            name = names.modules[path]
        else:
            name = names.modules.get(path[:-1])
            name = name and f"{name}.{_LEAVES[path[-1]]}"
        if name is None:
            continue
        stacked = "{layer}" in name
        for layer in range(shape[0]) if stacked else (None,):
            each = _published_shape(path, shape[1:] if stacked else shape)
            found[name.format(layer=layer)] = Place(path, layer, each)
    return found


def from_published(model: nnx.Module, tensors: Mapping[str, np.ndarray], names: Names) -> dict[str, Any]:
    """The model's parameters, as nested dicts of NumPy arrays, from tensors under published names.

    Args:
      model: gives the shapes; `nnx.eval_shape` of one is enough.
      tensors: PyTorch's layouts: linear [out, in], convolution [out, in, height, width].
      names: which published system's names.

    Raises:
      InputError: a tensor is missing, or has another shape than the model's sizes make it.
    """
    wanted = places(model, names)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise InputError(f"tensor {missing[0]} is missing" + _more(missing))
    for name, place in wanted.items():
        if tensors[name].shape != place.shape:
            raise InputError(f"tensor {name} has shape {tensors[name].shape}; {place.shape} is needed")
    flat = {
        path: np.empty(parameter.get_value().shape, np.float32)
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    for name, place in wanted.items():
        target = flat[place.path] if place.layer is None else flat[place.path][place.layer]
        target[...] = _transpose(tensors[name]).reshape(target.shape)
    return nnx.traversals.unflatten_mapping(flat)


def to_published(model: nnx.Module, names: Names) -> Tensors:
    """The model's parameters as float32 tensors under published names, in PyTorch's layouts. No fixed positions."""
    flat = {
        path: np.asarray(parameter.get_value(), np.float32)
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    tensors = {}
    for name, place in places(model, names).items():
        value = flat[place.path] if place.layer is None else flat[place.path][place.layer]
        if len(place.shape) == 2:
            value = value.reshape(place.shape[::-1]).T
        elif len(place.shape) == 4:
            out, channels, height, width = place.shape
            value = value.reshape(height, width, channels, out).transpose(3, 2, 0, 1)
        tensors[name] = np.ascontiguousarray(value.reshape(place.shape))
    return tensors


def _transpose(tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim == 4:  # convolution: patches flatten as (row, column, channel)
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _published_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] in ("bias", "scale"):
        return (math.prod(shape),)
    if path[-1] != "kernel":
        return shape
    if path[-2] == "patch_embed":
        patch = math.isqrt(shape[0] // 3)
        return (shape[1], 3, patch, patch)
    contracted = 2 if path[-2] == "out" else 1  # heads and head_dim together
    return (math.prod(shape[contracted:]), math.prod(shape[:contracted]))


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
