"""Parameters under the published PyTorch names → ours.

Ours differ in three ways: the layers of a stack share one array with a leading layer axis; kernels are
[in…, out…] where PyTorch's are [out, in]; attention kernels keep heads apart as [width, 3, heads, head_dim] or such.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Path = tuple[str, ...]

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
CROCO = {
    ("mask_token",): "mask_token",
    ("patch_embed",): "patch_embed.proj",
    **{("encoder", *ours): f"enc_blocks.{{layer}}.{name}" for ours, name in _SELF_ATTENTION_BLOCK.items()},
    ("encoder_norm",): "enc_norm",
    ("decoder_embed",): "decoder_embed",
    **{("decoder", *ours): f"dec_blocks.{{layer}}.{name}" for ours, name in _DECODER_BLOCK.items()},
    ("decoder_norm",): "dec_norm",
    ("prediction_head",): "prediction_head",
}
"""Our module → the published module name; `{layer}` where our parameters are stacked."""

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def from_torch(model: nnx.Module, tensors: Mapping[str, np.ndarray], names: Mapping[Path, str] = CROCO) -> dict:
    """The model's parameters, as nested dicts, filled from tensors under the published names.

    Args:
      model: gives the shapes; `nnx.eval_shape` of one is enough.
      tensors: PyTorch's layouts: linear [out, in], convolution [out, in, height, width].
      names: which published system's names.

    Raises:
      KeyError: a tensor is missing.
      ValueError: a tensor has not the size that the model needs.
    """

    def fill(path: Path, parameter: nnx.Variable) -> nnx.Variable:
        name = names[path] if path in names else f"{names[path[:-1]]}.{_LEAVES[path[-1]]}"
        shape = parameter.get_value().shape
        if "{layer}" not in name:
            return parameter.replace(_to_ours(name, tensors[name], shape))
        layers = [name.format(layer=layer) for layer in range(shape[0])]
        return parameter.replace(jnp.stack([_to_ours(layer, tensors[layer], shape[1:]) for layer in layers]))

    return nnx.to_pure_dict(nnx.map_state(fill, nnx.state(model, nnx.Param)))


def _to_ours(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    if tensor.size != np.prod(shape):
        raise ValueError(f"{name} has shape {tensor.shape}, which does not fit {shape}")
    if tensor.ndim == 4:  # convolution: patches flatten as (row, column, channel)
        tensor = tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 2:
        tensor = tensor.T
    return jnp.asarray(tensor.reshape(shape))
