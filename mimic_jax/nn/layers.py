"""Linear layers and LayerNorm as the published models set them up, every parameter naming its logical axes.

`axes` is metadata on each parameter: one name per dimension, such as ("embed", "mlp"), which `training.mesh` maps to
mesh axes.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Axes = tuple[str | None, ...]


class Linear(nnx.LinearGeneral):
    """`nnx.LinearGeneral` over trailing dimensions, on tokens laid out in one row.

    The kernel's gradient then contracts one dimension, not batch and length: a plain matrix product on every backend.
    """

    def __call__(self, tokens: Float[Array, "..."]) -> Float[Array, "..."]:
        leading = tokens.shape[: -len(self.axis)]
        flat = super().__call__(tokens.reshape(-1, *self.in_features))
        return flat.reshape(*leading, *self.out_features)


def linear(
    features_in: int | Sequence[int],
    features_out: int | Sequence[int],
    *,
    axes_in: Axes,
    axes_out: Axes,
    rngs: nnx.Rngs,
    dtype: jnp.dtype | None = None,
) -> Linear:
    """A linear layer from the trailing `features_in` dimensions to `features_out`.

    Weights are Xavier-uniform over the flattened fans, biases zero (CroCo, MAE): fused projections count as one matrix.

    Args:
      features_in: sizes of the contracted trailing dimensions.
      features_out: sizes of the dimensions they become.
      axes_in, axes_out: the logical names of those dimensions.
      rngs: where the initial weights come from.
      dtype: of the computation; parameters are float32. None: as the inputs.
    """
    contracted = (features_in,) if isinstance(features_in, int) else tuple(features_in)
    return Linear(
        contracted,
        features_out,
        axis=tuple(range(-len(contracted), 0)),
        kernel_init=nnx.initializers.xavier_uniform(),
        kernel_metadata={"axes": (*axes_in, *axes_out)},
        bias_metadata={"axes": axes_out},
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(width: int, *, rngs: nnx.Rngs, dtype: jnp.dtype | None = None) -> nnx.LayerNorm:
    """LayerNorm over the last dimension with the published ε of 1e-6."""
    metadata = {"axes": ("embed",)}
    return nnx.LayerNorm(
        width,
        epsilon=1e-6,
        # The one-pass variance cancels in float32 where a channel mean is large.
        use_fast_variance=False,
        scale_metadata=metadata,
        bias_metadata=metadata,
        dtype=dtype,
        rngs=rngs,
    )
