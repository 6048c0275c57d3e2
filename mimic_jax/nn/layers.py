"""Linear layers, LayerNorm and GELU of the published models; each parameter names its logical axes.

`axes` is metadata on a parameter: one name per dimension, such as ("embed", "mlp"), which a `Layout` maps to axes of a
mesh. Other layers, such as `nnx.Conv`, have no such metadata; their parameters are replicated.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from mimic_jax.nn.compute import PROJECTION, Compute
from mimic_jax.nn.layout import Axes


class Linear(nnx.LinearGeneral):
    """`nnx.LinearGeneral` over trailing dimensions, with tokens flattened to rows.

    The kernel's gradient then contracts one dimension instead of batch and length: a matrix product on every backend.
    """

    def __init__(self, *arguments, axes_in: Axes, axes_out: Axes, compute: Compute, **options):
        super().__init__(*arguments, **options)
        self.axes_in, self.axes_out, self.compute = axes_in, axes_out, compute

    def __call__(self, tokens: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """Applies the layer to tokens with at least one dimension before the contracted ones."""
        kernel, bias = self.kernel.get_value(), self.bias.get_value()
        dtype = self.compute.dtype or jnp.result_type(tokens, kernel)
        leading = tokens.shape[: -len(self.axis)]
        rows = tokens.reshape(-1, *self.in_features).astype(dtype)
        layout, used, stored = self.compute.layout, None, None
        if layout is not None:
            axes = (*self.axes_in, *self.axes_out)
            used, stored = layout.sharding(layout.axes_in_use(axes)), layout.sharding(axes)
        result = checkpoint_name(affine(used, stored, rows, kernel, bias), PROJECTION)
        result = result.reshape(*leading, *self.out_features)
        return result if layout is None else self.compute.constrain(result, *layout.axes_in_use(self.axes_out))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def affine(
    used: NamedSharding | None,
    stored: NamedSharding | None,
    rows: Float[Array, "rows *inner"],
    kernel: Float[Array, "*inner_and_outer"],
    bias: Float[Array, "*outer"],
) -> Float[Array, "rows *outer"]:
    """rows · kernel + bias in the type of the rows; gradients of kernel and bias are summed in their own type, float32.

    With the derivative that JAX makes, each device would round its sum over the batch to the type of the rows before
    the sums of the devices are added.

    Args:
      used, stored: shardings of the kernel in the product and in memory. The kernel is gathered in the type of the
        rows, forward and backward, and each device keeps only its shard of the gradient. None: one device.
    """
    inner = tuple(range(1, rows.ndim))
    of_kernel = tuple(range(rows.ndim - 1))
    product = jax.lax.dot_general(rows, _constrain(kernel.astype(rows.dtype), used), ((inner, of_kernel), ((), ())))
    return product + bias.astype(rows.dtype)


def _affine_forward(used, stored, rows, kernel, bias):
    return affine(used, stored, rows, kernel, bias), (rows, kernel)


def _affine_backward(used, stored, saved, gradient):
    rows, kernel = saved
    outer = tuple(range(1, gradient.ndim))
    outer_of_kernel = tuple(range(rows.ndim - 1, kernel.ndim))
    gathered = _constrain(kernel.astype(rows.dtype), used)
    of_rows = jax.lax.dot_general(gradient, gathered, ((outer, outer_of_kernel), ((), ())))
    summed = functools.partial(
        jax.lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype
    )
    # XLA's CPU backend has no product of 16-bit types with a 32-bit result.
    on_cpu = lambda *operands: summed(*(each.astype(kernel.dtype) for each in operands))  # noqa: E731
    of_kernel = jax.lax.platform_dependent(rows, gradient, cpu=on_cpu, default=summed)
    return of_rows, _constrain(of_kernel, stored), gradient.sum(0, dtype=kernel.dtype)


affine.defvjp(_affine_forward, _affine_backward)


def _constrain(array: Float[Array, "..."], sharding: NamedSharding | None) -> Float[Array, "..."]:
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


@jax.custom_vjp
def gelu(hidden: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Φ(x), with Φ the standard normal distribution: computed in float32, returned in the input's type.

    The derivative, Φ(x) + x φ(x), needs only the input. The derivative that JAX makes saves three arrays of the hidden
    width.

    Source: Hendrycks & Gimpel 2016, the exact form.
    """
    x = hidden.astype(jnp.float32)
    return (x * _normal_cdf(x)).astype(hidden.dtype)


def _gelu_backward(hidden, gradient):
    x = hidden.astype(jnp.float32)
    slope = _normal_cdf(x) + x * jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi, dtype=np.float32)
    return ((gradient.astype(jnp.float32) * slope).astype(hidden.dtype),)


def _normal_cdf(x):
    return jax.lax.erfc(-x * np.sqrt(0.5, dtype=np.float32)) / 2


gelu.defvjp(lambda hidden: (gelu(hidden), hidden), _gelu_backward)


def linear(
    features_in: int | Sequence[int],
    features_out: int | Sequence[int],
    *,
    axes_in: Axes,
    axes_out: Axes,
    rngs: nnx.Rngs,
    compute: Compute,
) -> Linear:
    """A linear layer from the trailing `features_in` dimensions to `features_out`.

    Weights are Xavier-uniform over the flattened fans and biases zero (CroCo, MAE): a fused projection is one matrix.

    Args:
      features_in: sizes of the contracted trailing dimensions.
      features_out: sizes of the dimensions of the result.
      axes_in, axes_out: logical axes of these dimensions.
      rngs: random keys of the initial weights; parameters are float32.
    """
    contracted = (features_in,) if isinstance(features_in, int) else tuple(features_in)
    return Linear(
        contracted,
        features_out,
        axis=tuple(range(-len(contracted), 0)),
        kernel_init=nnx.initializers.xavier_uniform(),
        kernel_metadata={"axes": (*axes_in, *axes_out)},
        # One dimension as published, however it is split: weight decay leaves it out.
        bias_metadata={"axes": axes_out, "ndim": 1},
        rngs=rngs,
        axes_in=axes_in,
        axes_out=axes_out,
        compute=compute,
    )


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm`, computed in float32; the result has the type of activations."""

    def __init__(self, *arguments, compute: Compute, **options):
        super().__init__(*arguments, dtype=jnp.float32, **options)
        self.compute = compute

    def __call__(self, tokens: Float[Array, "..."]) -> Float[Array, "..."]:
        return super().__call__(tokens).astype(self.compute.dtype or tokens.dtype)


def layer_norm(width: int, *, rngs: nnx.Rngs, compute: Compute) -> LayerNorm:
    """LayerNorm over the last dimension with the published ε of 1e-6."""
    metadata = {"axes": ("embed",)}
    return LayerNorm(
        width,
        epsilon=1e-6,
        # The one-pass variance cancels in float32 where a channel mean is large.
        use_fast_variance=False,
        scale_metadata=metadata,
        bias_metadata=metadata,
        rngs=rngs,
        compute=compute,
    )
