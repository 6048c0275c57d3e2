"""How well a model completes views that it was not trained on, and what the second view contributes."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mimic_jax import records
from mimic_jax.data.augment import center_crop, denormalize
from mimic_jax.data.mixture import Examples
from mimic_jax.data.pairs import pairs_source, read_view
from mimic_jax.data.source import INDEX, Source
from mimic_jax.data.stored import Stored
from mimic_jax.evaluation.mean import Batch, Measures, row_keys
from mimic_jax.models import completion
from mimic_jax.nn import masking
from mimic_jax.nn.patches import grid_of, patchify, unpatchify

# Decibels of a completion without any error; without a bound one such image would make the mean infinite.
MAX_PSNR = 100.0

OTHER_VIEW2 = "other_view2"


def predicts_pixels(model: nnx.Module) -> bool:
    """Whether a model predicts pixels: an encoder does not, nor do DUSt3R's weights."""
    return model.sizes.decoder_depth > 0 and model.sizes.predicts


def errors(
    model: nnx.Module, views: Sequence[completion.Images], visible: completion.Visible
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Errors of a model's completion on the hidden patches of each first view.

    Returns:
      error: mean squared error, the loss of training.
      psnr: peak signal-to-noise ratio of their pixels in decibels, at most 100: −10 log₁₀ of the mean squared
        difference of colours in [0, 1]. Where the model was trained on normalised patches, each has its true mean and
        spread (`completion.to_pixels`).
    """
    first, sizes = views[0], model.sizes
    hidden = completion.mask(first, visible, sizes)
    prediction = model(*views, visible).astype(jnp.float32)
    error = completion.masked_mse(prediction, completion.target(first, sizes), hidden)
    true = patchify(first, sizes.patch_size)
    completed = jnp.clip(_colours(completion.to_pixels(prediction, first, sizes), sizes.patch_size), 0, 1)
    squared = completion.masked_mse(completed, _colours(true, sizes.patch_size), hidden)
    return error, -10 * jnp.log10(jnp.maximum(squared, 10 ** (-MAX_PSNR / 10)))


def completion_source(
    examples: Examples, size: tuple[int, int], views: int, others: dict[int, records.Pair] | None
) -> Source:
    """Pairs as completion is measured on: their views, and where given a second view of another scene.

    Args:
      size: views are resized to this height and width, in pixels.
      views: that the model takes.
      others: for the indices that will be read, pairs whose second views are used.
    """
    names = ("view1", "view2")[:views]
    source = pairs_source(examples, size=size, views=names)
    if others is None or views == 1:
        return source
    spec = source.spec | {OTHER_VIEW2: source.spec["view2"]}
    return dataclasses.replace(source, spec=spec, read=_WithOther(Stored.of(examples), others, size))


def measure_completion(model: nnx.Module, batch: Batch, *, crop: tuple[int, int], seed: int) -> Measures:
    """Errors of a batch with the second view, with that of another scene, and with a black one, on the same masks.

    A model that ignores the second view has the same error with each. The masks are drawn by the seed and the index of
    the example.

    Returns:
      `error`, `psnr` (decibels) and, for a model of two views, `error_black_view` and, where the batch has another
      view, `error_wrong_view`.
    """
    first = center_crop(batch["view1"], crop)
    rows, columns = grid_of(first, model.sizes.patch_size)
    patches = rows * columns
    draw = jax.vmap(lambda key: masking.random_visible(key, 1, patches, model.sizes.visible(patches))[0])
    visible = draw(row_keys(seed, batch[INDEX]))
    ones = jnp.ones(len(first))
    if model.views == 1:
        error, psnr = errors(model, (first,), visible)
        return {"error": (error, ones), "psnr": (psnr, ones)}
    seconds = {"error": batch["view2"], "error_black_view": jnp.zeros_like(batch["view2"])}
    if OTHER_VIEW2 in batch:
        seconds["error_wrong_view"] = batch[OTHER_VIEW2]
    # One after the other, so that the model is compiled once.
    found, psnr = jax.lax.map(
        lambda second: errors(model, (first, center_crop(second, crop)), visible), jnp.stack(list(seconds.values()))
    )
    return {name: (each, ones) for name, each in zip(seconds, found, strict=True)} | {"psnr": (psnr[0], ones)}


def pairs_from_other_scenes(
    pairs: Sequence[records.Pair], pool: Sequence[records.Pair], seed: int
) -> list[records.Pair] | None:
    """For each pair one of another scene, drawn from the pool; None where the pool has no other scene for some pair."""
    rng = np.random.default_rng(seed)
    indices: dict[tuple[str, str], list[int]] = {}
    for index, pair in enumerate(pool):
        indices.setdefault((pair.source, pair.scene), []).append(index)
    drawn = []
    for pair in pairs:
        own = indices.get((pair.source, pair.scene), [])
        if len(own) == len(pool):
            return None
        drawn.append(pool[rng.choice(np.delete(np.arange(len(pool)), own))])
    return drawn


@dataclasses.dataclass(frozen=True, eq=False)
class _WithOther:
    """`Source.read` of pairs with a second view of another scene."""

    stored: Stored
    others: dict[int, records.Pair]
    size: tuple[int, int]

    def __call__(self, index: int, row: dict[str, UInt8[np.ndarray, "height width 3"]]) -> None:
        pair = self.stored.read(index)
        for name in ("view1", "view2"):
            row[name][:] = read_view(pair, name, self.size)
        row[OTHER_VIEW2][:] = read_view(self.others[index], "view2", self.size)


def _colours(
    patches: Float[Array, "batch patches patch_pixels"], patch: int
) -> Float[Array, "batch patches patch_pixels"]:
    """Normalised patches with colours in [0, 1] again."""
    row_of_patches = unpatchify(patches, patch, 1, patches.shape[1])
    return patchify(denormalize(row_of_patches), patch)
