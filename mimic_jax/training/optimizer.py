"""AdamW as CroCo, MAE and MIMIC use it."""

import jax
import optax
from jaxtyping import PyTree


def learning_rate(base: float, batch_size: int, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to base · batch / 256, then half a cosine to 0, per step (MAE, appendix A).

    Args:
      base: the learning rate for a batch of 256.
      batch_size: the global batch.
      warmup_steps: when the peak is reached.
      total_steps: when zero is reached.
    """
    return optax.warmup_cosine_decay_schedule(0.0, base * batch_size / 256, warmup_steps, total_steps)


def decays(params: PyTree) -> PyTree:
    """True for each parameter that weight decay applies to: all but biases and norms, the 1-D ones in PyTorch."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def adamw(
    schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float, clip_norm: float = 0.0
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay on matrices alone.

    Args:
      clip_norm: gradients whose norm, over all parameters, is larger are scaled down to it; 0: never.
    """
    optimizer = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer
