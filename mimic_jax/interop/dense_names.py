"""Parameters of `models.dense.Dense` with a DPT head ↔ tensors under the names of MultiMAE's and CroCo's programs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float

from mimic_jax.command import InputError
from mimic_jax.interop import names
from mimic_jax.interop.names import Names, Path, Tensors

_LEAVES = {"kernel": "weight", "bias": "bias"}
_STAGES = (1, 2, 3, 4)
# Our module in a DPT head → the published one. A published state dict may hold two more names for the tensors of
# `act_{i}_postprocess` and `scratch.layer{i}_rn`. `scratch.refinenet4.resConfUnit1` is not used and has no counterpart.
_DPT: Mapping[Path, str] = {
    **{(f"reassemble{i}", "project"): f"act_{i}_postprocess.0" for i in _STAGES},
    **{(f"reassemble{i}", "resample"): f"act_{i}_postprocess.1" for i in (1, 2, 4)},
    **{(f"reassemble{i}", "to_features"): f"scratch.layer{i}_rn" for i in _STAGES},
    **{
        (f"fuse{i}", f"unit{unit}", f"conv{conv}"): f"scratch.refinenet{i}.resConfUnit{unit}.conv{conv}"
        for i in _STAGES
        for unit in (1, 2)
        for conv in (1, 2)
        if (i, unit) != (4, 1)
    },
    **{(f"fuse{i}", "out"): f"scratch.refinenet{i}.out_conv" for i in _STAGES},
    **{("tail", f"conv{conv}"): f"head.{layer}" for conv, layer in ((1, 0), (2, 2), (3, 4))},
}


@dataclasses.dataclass(frozen=True)
class DenseNames:
    """The names of a published dense model.

    encoder: of the encoder's tensors. head: the prefix of the DPT head's tensors.
    """

    encoder: Names
    head: str


CROCO = DenseNames(names.CROCO, "head.dpt.")


def multimae(task: str) -> DenseNames:
    """The names of MultiMAE's model for a task, such as "depth" or "normal"."""
    return DenseNames(names.MULTIMAE, f"output_adapters.{task}.")


def from_published(model: nnx.Module, tensors: Mapping[str, np.ndarray], dense: DenseNames) -> dict[str, Any]:
    """A `Dense` model's parameters, as nested dicts of NumPy arrays, from tensors under published names.

    MultiMAE has no final norm: ours is then the identity's parameters, and `normalise_last` must be off. Its position
    table becomes the model's learned one; the global token has no position.

    Args:
      model: gives the shapes; `nnx.eval_shape` of one is enough.
      tensors: PyTorch's layouts.

    Raises:
      InputError: a tensor is missing, or has another shape than the model's sizes make it.
    """
    params = names.from_published(model, tensors, _without_positions(dense))
    encoder, table = params["encoder"], dense.encoder.encoder_positions
    if ("encoder", "norm") not in dense.encoder.modules:
        encoder["norm"]["scale"][...], encoder["norm"]["bias"][...] = 1, 0
    if "positions" in encoder:
        encoder["positions"][...] = 0
        first = model.sizes.class_token
        grid, width = model.sizes.position_grid, model.sizes.encoder_width
        published = _tensor(tensors, table, (1, width, *grid))
        encoder["positions"][0, first:] = published[0].reshape(width, -1).T
    for path, name in _head_tensors(model, dense).items():
        target = _at(params["head"], path)
        tensor = _tensor(tensors, name, _published_shape(target.shape))
        target[...] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    return params


def to_published(model: nnx.Module, dense: DenseNames) -> Tensors:
    """A `Dense` model's parameters as float32 tensors under published names, in PyTorch's layouts.

    Without fixed positions, and without the unit that the published head does not use.
    """
    tensors = names.to_published(model, _without_positions(dense))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if "positions" in params["encoder"]:
        table = np.asarray(params["encoder"]["positions"])[0, model.sizes.class_token :]
        tensors[dense.encoder.encoder_positions] = table.T.reshape(1, -1, *model.sizes.position_grid)
    for path, name in _head_tensors(model, dense).items():
        value = np.asarray(_at(params["head"], path))
        tensors[name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    return tensors


def _without_positions(dense: DenseNames) -> Names:
    return dataclasses.replace(dense.encoder, encoder_positions=None)


def _head_tensors(model: nnx.Module, dense: DenseNames) -> dict[Path, str]:
    """Path of each parameter in the head → its published name."""
    paths = (path for path, _ in nnx.to_flat_state(nnx.state(model.head, nnx.Param)))
    return {path: f"{dense.head}{_DPT[path[:-1]]}.{_LEAVES[path[-1]]}" for path in paths}


def _at(tree: Mapping[str, Any], path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _published_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Convolutions are [rows, columns, in, out] here, [out, in, rows, columns] there; transposed: in, out swapped."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _tensor(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    if name not in tensors:
        raise InputError(f"tensor {name} is missing")
    if tensors[name].shape != shape:
        raise InputError(f"tensor {name} has shape {tensors[name].shape}; {shape} is needed")
    return tensors[name]
