"""FLOPs of a training step in closed form: the matrix products of the model, two FLOPs a multiply-add.

Norms, activations, softmax and the optimizer are left out, as is usual for model FLOPs (Kaplan et al. 2020, PaLM
appendix B). Backward, each product is two: by its input and by its weight. Pixels need no gradient, so the patch
embedding has the second alone. Attention counts in full: nothing here is causal.
"""

from mimic_jax.models.kinds import MODELS
from mimic_jax.models.sizes import Sizes


def model_flops(kind: str, sizes: Sizes, crop: tuple[int, int], batch: int) -> dict[str, int]:
    """FLOPs of one step, forward and backward, by part of the model.

    Args:
      kind: "croco" or "mae".
      crop: height and width of what the model sees, in pixels.
      batch: images that are completed in the step.
    """
    patches = (crop[0] // sizes.patch_size) * (crop[1] // sizes.patch_size)
    pixels = 3 * sizes.patch_size**2
    extra = int(sizes.class_token)
    visible, whole = sizes.visible(patches) + extra, patches + extra
    width, inner = sizes.encoder_width, sizes.decoder_width
    # Hidden patches are left out before anything else.
    encoded = [visible] if MODELS[kind].views == 1 else [visible, whole]
    cross = 0 if MODELS[kind].views == 1 else _cross_attention(whole, whole, inner)
    forward = {
        "encoder": sizes.encoder_depth * sum(_block(tokens, width) for tokens in encoded),
        "decoder embedding": sum(_product(tokens, width, inner) for tokens in encoded),
        "decoder": sizes.decoder_depth * (_block(whole, inner) + cross),
        "head": _product(patches, inner, pixels),
    }
    embedding = 2 * _product(sum(encoded) - extra * len(encoded), pixels, width)
    return {"patch embedding": batch * embedding} | {part: 3 * batch * flops for part, flops in forward.items()}


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _attention(tokens: int, context: int, width: int) -> int:
    """QKᵀ and its product with V, of all heads."""
    return 2 * _product(tokens, width, context)


def _block(tokens: int, width: int) -> int:
    """Queries, keys, values and output; attention; an MLP four times as wide."""
    return (
        4 * _product(tokens, width, width) + _attention(tokens, tokens, width) + 2 * _product(tokens, width, 4 * width)
    )


def _cross_attention(tokens: int, context: int, width: int) -> int:
    projections = 2 * _product(tokens, width, width) + 2 * _product(context, width, width)
    return projections + _attention(tokens, context, width)
