"""How well a model completes views that it has not seen, and what the second view is worth to it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8

from mimic_jax import hosts, records
from mimic_jax.data.augment import center_crop, denormalize
from mimic_jax.data.pairs import read_view
from mimic_jax.models import completion
from mimic_jax.nn import masking
from mimic_jax.nn.patches import patchify, unpatchify

# Decibels of a completion without any error; without a bound one such image would make the mean infinite.
MOST_DECIBELS = 100.0

Bytes = UInt8[np.ndarray, "pairs height width 3"]


def completes(model: nnx.Module) -> bool:
    """Whether a model predicts pixels: an encoder alone does not, nor do DUSt3R's weights."""
    return model.sizes.decoder_depth > 0 and model.sizes.predicts


def errors(
    model: nnx.Module, views: Sequence[completion.Images], visible: completion.Visible
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """What a model makes of the hidden patches of each first view.

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
    return error, -10 * jnp.log10(jnp.maximum(squared, 10 ** (-MOST_DECIBELS / 10)))


def make_completion(
    model: nnx.Module,
    pairs: Sequence[records.Pair],
    wrong: Sequence[records.Pair] | None,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    batch: int,
    seed: int,
) -> Callable[[PyTree], dict[str, float]]:
    """Builds `params → numbers` on fixed pairs and fixed masks.

    A model of two views is measured with the right second view, with one of another scene, and with a black one, on
    the same masks; a model that ignores the second view has the same error with each.

    Args:
      model: completes views; its parameters are not kept.
      pairs: what is measured on.
      wrong: for each pair one of another scene, which lends it a wrong second view; None: there are none.
      size, crop: views are resized to `size` (height, width); the middle `crop` of them is seen.
      batch: how many pairs are measured at a time.
      seed: decides the masks.

    Returns:
      A function whose numbers are `error`, `psnr` (decibels) and, for two views, `error_wrong_view` and
      `ratio` = error / error_wrong_view (where there are wrong ones), and `error_black_view`.
    """
    graph, _ = nnx.split(model)
    batch = min(batch, len(pairs))
    first = _stack(pairs, "view1", size)
    seconds: dict[str, Bytes | None] = {"error": None}
    if model.views == 2:
        seconds = {"error": _stack(pairs, "view2", size), "error_black_view": np.zeros_like(first)}
        if wrong is not None:
            seconds["error_wrong_view"] = _stack(wrong, "view2", size)
    masks = _masks(len(pairs), model.sizes, crop, batch, seed)

    @jax.jit
    def sums(params: PyTree, views: Sequence[Array], visible: Array, counted: Array) -> tuple[Array, Array]:
        views = [center_crop(view, crop) for view in views]
        return tuple((each * counted).sum() for each in errors(nnx.merge(graph, params), views, visible))

    def measure(params: PyTree) -> dict[str, float]:
        parts = {
            name: [
                sums(
                    params,
                    [padded(view[start : start + batch], batch) for view in (first, second) if view is not None],
                    padded(masks[start : start + batch], batch),
                    np.arange(start, start + batch) < len(pairs),
                )
                for start in range(0, len(pairs), batch)
            ]
            for name, second in seconds.items()
        }
        # Fetched once, so that the accelerator never waits for the host between batches.
        means = {
            name: np.sum(found, axis=0, dtype=np.float64) / len(pairs) for name, found in hosts.fetch(parts).items()
        }
        numbers = {name: float(mean[0]) for name, mean in means.items()} | {"psnr": float(means["error"][1])}
        if "error_wrong_view" in numbers:
            numbers["ratio"] = numbers["error"] / numbers["error_wrong_view"]
        return numbers

    return measure


def strangers(pairs: Sequence[records.Pair], pool: Sequence[records.Pair], seed: int) -> list[records.Pair] | None:
    """For each pair one of another scene, drawn from the pool; None where the pool has no other scene for some pair."""
    rng = np.random.default_rng(seed)
    places: dict[tuple[str, str], list[int]] = {}
    for place, pair in enumerate(pool):
        places.setdefault((pair.source, pair.scene), []).append(place)
    drawn = []
    for pair in pairs:
        own = places.get((pair.source, pair.scene), [])
        if len(own) == len(pool):
            return None
        drawn.append(pool[rng.choice(np.delete(np.arange(len(pool)), own))])
    return drawn


def padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows up to `count`, the first one repeated, so that all batches compile as one."""
    return rows if len(rows) == count else np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])


def _stack(pairs: Sequence[records.Pair], view: str, size: tuple[int, int]) -> Bytes:
    return np.stack([read_view(pair, view, size) for pair in pairs])


def _masks(pairs: int, sizes, crop: tuple[int, int], batch: int, seed: int) -> Int[np.ndarray, "pairs visible"]:
    """The visible patches of each pair; each batch has a key of its own."""
    patches = (crop[0] // sizes.patch_size) * (crop[1] // sizes.patch_size)
    return np.concatenate(
        [
            masking.random_visible(
                jax.random.key(seed + start), min(batch, pairs - start), patches, sizes.visible(patches)
            )
            for start in range(0, pairs, batch)
        ]
    )


def _colours(
    patches: Float[Array, "batch patches patch_pixels"], patch: int
) -> Float[Array, "batch patches patch_pixels"]:
    """Normalised patches with colours in [0, 1] again."""
    row_of_patches = unpatchify(patches, patch, 1, patches.shape[1])
    return patchify(denormalize(row_of_patches), patch)
