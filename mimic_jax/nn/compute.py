"""How a model is computed, as against what it computes."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from mimic_jax.nn.layout import Axes, Layout

# What linear layers and attention call their results, for policies to know them by.
PROJECTION, ATTENDED = "projection", "attended"
# The primitive of NVIDIA's fused attention, which keeps its result and the sums that its backward pass needs.
_FUSED = "dot_product_attention_fwd_wrapper"


def _keep_products(primitive: jax.extend.core.Primitive, *operands, **options) -> bool:
    named = jax.checkpoint_policies.save_only_these_names(PROJECTION, ATTENDED)
    return primitive.name == _FUSED or named(primitive, *operands, **options)


# What the backward pass finds kept of each block, by the name that configs have for it; the rest is computed again.
# From what keeps most to what keeps least. "none" is seldom the fastest: it writes and reads what takes less time to
# compute, such as attention's float32 scores.
REMAT = {
    "none": None,  # nothing is computed again
    "dots": _keep_products,  # of matrix products, but attention's scores
    "blocks": jax.checkpoint_policies.nothing_saveable,  # what the block was given, alone
}
ATTENTION = ("xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class Compute:
    """Changes speed and memory, and results by rounding alone.

    dtype: of activations and of the operands of products; norms, softmax, losses and the sums that make gradients are
      float32, as parameters are. None: as the inputs are.
    attention: "xla", or "cudnn" for the fused kernel of NVIDIA's library, which takes 16-bit types alone.
    remat: one of REMAT.
    scan: whether the blocks of a stack are compiled as one, which runs in a loop; else one after the other.
    layout: where arrays lie on a mesh of devices. None: all on one.
    """

    dtype: jnp.dtype | None = None
    attention: str = "xla"
    remat: str = "none"
    scan: bool = True
    layout: Layout | None = None

    def place(self, array: Shaped[Array, "batch ..."], *last: str | None) -> Shaped[Array, "batch ..."]:
        """Lays an activation out: its first axis as batches lie, its last axes as named, others whole.

        A batch that does not divide over its devices, a few pictures for instance, is left to the compiler.
        """
        if self.layout is None or array.shape[0] % self.layout.parts("batch"):
            return array
        axes: Axes = ("batch", *(None,) * (array.ndim - 1 - len(last)), *last)
        return self.layout.place(array, axes)


# One device, in the type of the inputs.
DEFAULT = Compute()
