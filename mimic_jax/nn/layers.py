"""Linear layers, LayerNorm and GELU as the published models have them, every parameter naming its logical axes.

`axes` is metadata on each parameter: one name per dimension, such as ("embed", "mlp"), which a `Layout` maps to axes of
a mesh.
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
    """`nnx.LinearGeneral` over trailing dimensions, on tokens laid out in rows.

    The kernel's gradient then contracts one dimension, not batch and length: a plain matrix product on every backend.
    """

    def __init__(self, *arguments, axes_in: Axes, axes_out: Axes, compute: Compute, **options):
        super().__init__(*arguments, **options)
        self.axes_in, self.axes_out, self.compute = axes_in, axes_out, compute

    def __call__(self, tokens: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """`tokens` have at least one dimension besides those that are contracted."""
        kernel, bias = self.kernel.get_value(), self.bias.get_value()
        dtype = self.compute.dtype or jnp.result_type(tokens, kernel)
        leading = tokens.shape[: -len(self.axis)]
        rows = tokens.reshape(-1, *self.in_features).astype(dtype)
        used, kept = self._placements()
        result = checkpoint_name(affine(used, kept, rows, kernel, bias), PROJECTION)
        return self.compute.place(result.reshape(*leading, *self.out_features), *_split(self.axes_out))

    def _placements(self) -> tuple[NamedSharding | None, NamedSharding | None]:
        """How the kernel lies where it is used, and where it is kept."""
        if (layout := self.compute.layout) is None:
            return None, None
        axes = (*self.axes_in, *self.axes_out)
        return layout.sharding(_split(axes)), layout.sharding(axes)


def _split(axes: Axes) -> Axes:
    """Axes that are split in what is computed with; along the others parameters alone are, and are gathered for use."""
    return tuple(axis if axis in ("heads", "mlp") else None for axis in axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def affine(
    used: NamedSharding | None,
    kept: NamedSharding | None,
    rows: Float[Array, "rows *inner"],
    kernel: Float[Array, "*inner_and_outer"],
    bias: Float[Array, "*outer"],
) -> Float[Array, "rows *outer"]:
    """rows · kernel + bias in the type of the rows; gradients of kernel and bias are summed in their own, float32.

    Derived as it stands, each device would round its sum over a batch to the rows' type before devices add theirs.

    Args:
      used, kept: how the kernel lies for the product, and how it came: it is gathered in the type of the rows, forward
        and backward, and each device keeps its part of the gradient alone. None: on one device.
    """
    inner = tuple(range(1, rows.ndim))
    of_kernel = tuple(range(rows.ndim - 1))
    product = jax.lax.dot_general(rows, _placed(kernel.astype(rows.dtype), used), ((inner, of_kernel), ((), ())))
    return product + bias.astype(rows.dtype)


def _affine_forward(used, kept, rows, kernel, bias):
    return affine(used, kept, rows, kernel, bias), (rows, kernel)


def _affine_backward(used, kept, saved, gradient):
    rows, kernel = saved
    outer = tuple(range(1, gradient.ndim))
    outer_of_kernel = tuple(range(rows.ndim - 1, kernel.ndim))
    gathered = _placed(kernel.astype(rows.dtype), used)
    of_rows = jax.lax.dot_general(gradient, gathered, ((outer, outer_of_kernel), ((), ())))
    summed = functools.partial(
        jax.lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype
    )
    # XLA's CPU has no product of 16-bit types with a result of 32.
    on_cpu = lambda *operands: summed(*(each.astype(kernel.dtype) for each in operands))  # noqa: E731
    of_kernel = jax.lax.platform_dependent(rows, gradient, cpu=on_cpu, default=summed)
    return of_rows, _placed(of_kernel, kept), gradient.sum(0, dtype=kernel.dtype)


affine.defvjp(_affine_forward, _affine_backward)


def _placed(array: Float[Array, "..."], sharding: NamedSharding | None) -> Float[Array, "..."]:
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


@jax.custom_vjp
def gelu(hidden: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Φ(x), Φ the standard normal distribution (Hendrycks & Gimpel 2016; exact), in float32, of the input's type.

    Its derivative, Φ(x) + x φ(x), is made of the input alone: what JAX derives keeps three arrays of the hidden width.
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

    Weights are Xavier-uniform over the flattened fans, biases zero (CroCo, MAE): fused projections count as one matrix.

    Args:
      features_in: sizes of the contracted trailing dimensions.
      features_out: sizes of the dimensions they become.
      axes_in, axes_out: the logical names of those dimensions.
      rngs: where the initial weights come from; parameters are float32.
    """
    contracted = (features_in,) if isinstance(features_in, int) else tuple(features_in)
    return Linear(
        contracted,
        features_out,
        axis=tuple(range(-len(contracted), 0)),
        kernel_init=nnx.initializers.xavier_uniform(),
        kernel_metadata={"axes": (*axes_in, *axes_out)},
        bias_metadata={"axes": axes_out},
        rngs=rngs,
        axes_in=axes_in,
        axes_out=axes_out,
        compute=compute,
    )


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` in float32, whose result has the type of the computation."""

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
