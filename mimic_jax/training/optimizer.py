"""AdamW, and the learning rate of each parameter: by pattern, by layer, or frozen.

The path of a parameter is its keys joined by "/", as "encoder/blocks/mlp/expand/kernel". The parameters of a stack of
blocks are single arrays with a leading `layers` axis, along which layer-wise decay gives each layer its own rate.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, PyTree

from mimic_jax.command import InputError
from mimic_jax.nn.layout import axes_of
from mimic_jax.training.sections import AdamW

Path = tuple[str | int, ...]
Parameters = Mapping[Path, nnx.Variable]


def learning_rate(peak: float, warmup_steps: int, total_steps: int, end: float = 0.0) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then half a cosine to the end, per step (MAE, appendix A).

    Args:
      warmup_steps: when the peak is reached.
      total_steps: when the end is reached.
    """
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps, end)


def path_name(path: Path) -> str:
    """The path of a parameter as patterns match it."""
    return "/".join(map(str, path))


def multipliers_of(
    parameters: Parameters, settings: AdamW, layers: Sequence[tuple[str, int]]
) -> dict[Path, float | Float[np.ndarray, " layers ..."]]:
    """The factor of each parameter's learning rate; 0 is frozen.

    A layer's factor is layer_decay to the power of its distance from the last layer (BEiT, arXiv 2106.08254, appendix).

    Args:
      parameters: of the model, by path.
      layers: patterns and layers, see `Task.layers`.

    Returns:
      Numbers; for the stacked parameters of several layers, arrays that broadcast against the parameter.

    Raises:
      InputError: a pattern is no regular expression or matches no parameter, or layer_decay is set for a task whose
        parameters have no layers.
    """
    names = {path: path_name(path) for path in parameters}
    factors: dict[Path, float | np.ndarray] = {
        path: _first_match(settings.multipliers, name, default=1.0) for path, name in names.items()
    }
    for pattern, _ in settings.multipliers:
        if not any(_matches(pattern, name, "config.optimizer.multipliers") for name in names.values()):
            raise InputError(
                f"config.optimizer.multipliers: {pattern!r} matches no parameter; their paths are "
                f"{', '.join(sorted({name.rpartition('/')[0] for name in names.values()})[:8])}, …"
            )
    if settings.layer_decay == 1:
        return factors
    if not layers:
        raise InputError(f"config.optimizer.layer_decay={settings.layer_decay}: this task's parameters have no layers")
    first = {path: _first_match(layers, name) for path, name in names.items()}
    unknown = [names[path] for path, layer in first.items() if layer is None]
    if unknown:
        raise ValueError(f"the task gives no layer for {unknown}")
    ids = {path: first[path] + np.arange(_depth(parameter)) for path, parameter in parameters.items()}
    last = max(each[-1] for each in ids.values())
    for path, parameter in parameters.items():
        decay = settings.layer_decay ** (last - ids[path]).astype(np.float64)
        if len(decay) > 1:
            decay = decay.reshape(-1, *(1,) * (parameter.get_value().ndim - 1)).astype(np.float32)
        factors[path] = factors[path] * (decay if len(decay) > 1 else float(decay[0]))
    return factors


def decays(parameters: Parameters, no_decay: Sequence[str] = ()) -> dict[Path, bool]:
    """Whether weight decay applies to each parameter: to those of more than one dimension, `layers` not counted.

    A bias whose one dimension is split, into heads for instance, says so by its metadata `ndim`.

    Args:
      no_decay: patterns of more parameters that do not decay.
    """

    def dimensions(parameter: nnx.Variable) -> int:
        axes = axes_of(parameter)
        return parameter.get_metadata().get("ndim", len(axes) - ("layers" in axes))

    names = [path_name(path) for path in parameters]
    for pattern in no_decay:
        if not any(_matches(pattern, name, "config.optimizer.no_decay") for name in names):
            raise InputError(f"config.optimizer.no_decay: {pattern!r} matches no parameter")
    return {
        path: dimensions(parameter) > 1
        and not any(_matches(pattern, path_name(path), "config.optimizer.no_decay") for pattern in no_decay)
        for path, parameter in parameters.items()
    }


def adamw(
    schedule: optax.Schedule,
    settings: AdamW,
    decay_mask: PyTree[bool],
    multipliers: PyTree[float | np.ndarray],
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay (arXiv 1711.05101) and a learning rate for each parameter.

    Args:
      schedule: the learning rate of a step, before multipliers.
      decay_mask, multipliers: for each trained parameter; see `decays` and `multipliers_of`.
    """
    steps = [
        optax.adamw(
            schedule, b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay, mask=lambda _: decay_mask
        )
    ]
    if settings.clip_norm:
        steps.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    if any(np.any(np.asarray(each) != 1) for each in jax.tree.leaves(multipliers)):
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, multipliers)))
    return optax.chain(*steps) if len(steps) > 1 else steps[0]


def _first_match(
    patterns: Sequence[tuple[str, float | int]], name: str, default: float | None = None
) -> float | int | None:
    return next((value for pattern, value in patterns if _matches(pattern, name, "config.optimizer")), default)


def _matches(pattern: str, name: str, field: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise InputError(f"{field}: {pattern!r} is not a regular expression ({error})") from error


def _depth(parameter: nnx.Variable) -> int:
    """Layers in a stacked parameter; 1 for a parameter of one layer."""
    return parameter.get_value().shape[0] if axes_of(parameter)[:1] == ("layers",) else 1
