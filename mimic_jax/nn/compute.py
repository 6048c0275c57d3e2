"""How a model is computed: types, attention kernel, rematerialisation, sharding."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from mimic_jax.nn.layout import Axes, Layout

# Names of the results of linear layers and of attention, by which checkpoint policies recognise them.
PROJECTION, ATTENDED = "projection", "attended"
# The primitive of NVIDIA's fused attention, which saves its result and the sums that its backward pass needs.
_FUSED = "dot_product_attention_fwd_wrapper"


def _keep_products(primitive: jax.extend.core.Primitive, *operands, **options) -> bool:
    named = jax.checkpoint_policies.save_only_these_names(PROJECTION, ATTENDED)
    return primitive.name == _FUSED or named(primitive, *operands, **options)


# What a block saves for the backward pass, by the name in configs; the rest is recomputed. Most memory first.
# "none" is seldom the fastest: it writes and reads arrays that are cheaper to recompute, such as float32 scores.
REMAT = {
    "none": None,  # everything is saved
    "dots": _keep_products,  # matrix products are saved, except attention's scores
    "full": jax.checkpoint_policies.nothing_saveable,  # only the block's inputs are saved
}
ATTENTION = ("xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class Compute:
    """Options that change speed and memory, and results only by rounding.

    dtype: of activations and of the operands of products. Norms, softmax, losses and the sums that make gradients are
      float32, and so are parameters. None: the type of the inputs.
    residual_dtype: of the residual stream, to which each block adds. None: as `dtype`. Autocast in PyTorch, with which
      the published models were trained, corresponds to dtype bfloat16 and residual_dtype float32.
    attention: "xla", or "cudnn" for the fused kernel of NVIDIA's library, which supports only 16-bit types.
    remat: a key of REMAT.
    scan: whether the blocks of a stack are compiled once and run in a loop; otherwise they are unrolled.
    layout: how arrays are sharded over a mesh of devices. None: one device.
    """

    dtype: jnp.dtype | None = None
    # By keyword only, so that positional arguments keep their order.
    residual_dtype: jnp.dtype | None = dataclasses.field(default=None, kw_only=True)
    attention: str = "xla"
    remat: str = "none"
    scan: bool = True
    layout: Layout | None = None

    def to_residual(self, tokens: Float[Array, "..."]) -> Float[Array, "..."]:
        """The tokens in the type of the residual stream."""
        return tokens.astype(self.residual_dtype or self.dtype or tokens.dtype)

    def constrain(self, array: Shaped[Array, "batch ..."], *last: str | None) -> Shaped[Array, "batch ..."]:
        """Shards an activation: its first axis as the batch, its last axes as named, the others replicated.

        A batch that does not divide over its devices, such as a few images, is left to the compiler.
        """
        if self.layout is None or array.shape[0] % self.layout.shards("batch"):
            return array
        axes: Axes = ("batch", *(None,) * (array.ndim - 1 - len(last)), *last)
        return self.layout.constrain(array, axes)


# One device, in the type of the inputs.
DEFAULT = Compute()
