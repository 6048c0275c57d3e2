"""Where patches of one view are found in another, by a model that was never taught it.

A decoder that completes view 1 from view 2 must know where to look: its cross-attention is a matcher (arXiv
2412.09072). It is compared with nearest neighbours in encoder features, and with chance, on the places that mining
found. All distances are Euclidean, in patches of the model.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int16, PyTree

from mimic_jax import hosts, records
from mimic_jax.command import InputError
from mimic_jax.data.augment import center_crop
from mimic_jax.data.pairs import read_view
from mimic_jax.evaluation.completion import padded
from mimic_jax.models.completion import Images
from mimic_jax.nn.patches import grid_of

# A patch counts as found within so many patches of its true place …
WITHIN = (1, 2)
# … where distances that are whole numbers may come out a little above.
_TOLERANCE = 1e-4

ATTENTION, FEATURES, CHANCE = "attention", "features", "chance"


def attends(model: nnx.Module) -> bool:
    """Whether a model looks from one view at another."""
    return hasattr(model, "attention")


def layer_name(layer: int) -> str:
    """The name of a decoder layer's attention; layers are counted from 1."""
    return f"layer_{layer}"


def similarity(model: nnx.Module, view1: Images, view2: Images) -> Float[Array, "batch patches context_patches"]:
    """Cosine similarity of the encoder's features of the patches of two views, nothing hidden."""
    rows, columns = grid_of(view1, model.sizes.patch_size)
    # The patches are the last tokens: a class token comes before them.
    features = [model.encode(view)[:, -rows * columns :].astype(jnp.float32) for view in (view1, view2)]
    features = [each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in features]
    return jnp.einsum("bpw,bcw->bpc", *features)


def matchers(
    model: nnx.Module, view1: Images, view2: Images
) -> dict[str, Float[Array, "batch patches context_patches"]]:
    """How much each patch of view 1 belongs to each of view 2, by every matcher that the model has.

    Returns:
      `attention`, the mean over layers; `layer_1`, `layer_2`, … of the decoder; and `features`, cosine similarity of
      encoder features, which is all that a model of one view has.
    """
    found = {}
    if attends(model):
        maps = model.attention(view1, view2)
        found = {ATTENTION: maps.mean(0)} | {layer_name(layer): each for layer, each in enumerate(maps, start=1)}
    return found | {FEATURES: similarity(model, view1, view2)}


@dataclasses.dataclass(frozen=True)
class Truth:
    """The places that mining found in one pair, on the grid of a model's patches.

    patches: for each mined patch of view 1, the model's patch that contains its centre.
    places: (row, column) of the centre of the mined patch of view 2 that it maps to, in patches of the model.
    matched: whether it maps to any.
    """

    patches: Int[np.ndarray, " mined"]
    places: Float[np.ndarray, "mined 2"]
    matched: Bool[np.ndarray, " mined"]


def truth(correspondence: Int16[np.ndarray, " mined"], grid: tuple[int, int]) -> Truth:
    """Mined correspondences, of a square grid over the whole views, for a model of `grid` (rows, columns) patches.

    A centre on the edge between two patches belongs to the lower or right one.

    Raises:
      InputError: the correspondences are of no square grid.
    """
    side = math.isqrt(len(correspondence))
    if not side or side * side != len(correspondence):
        raise InputError(
            f"the dataset's correspondences have {len(correspondence)} patches a pair, which is no square grid; "
            "mine it again with python -m data_prep.mine"
        )
    row, column = (
        (2 * place + 1) * count // (2 * side)
        for place, count in zip(np.divmod(np.arange(side * side), side), grid, strict=True)
    )
    centres = (np.stack(np.divmod(correspondence, side), axis=-1) + 0.5) * np.divide(grid, side)
    return Truth(row * grid[1] + column, centres, correspondence >= 0)


def hits(
    found: Int[Array, "pairs mined"],
    places: Float[Array, "pairs mined 2"],
    counted: Bool[Array, "pairs mined"],
    columns: int,
) -> tuple[Int[Array, ""], ...]:
    """How many of the counted patches are found within each distance of WITHIN.

    Args:
      found: the model's patch that each was found in.
      places: (row, column) of its true place, in patches.
      columns: of the model's grid.
    """
    row, column = jnp.divmod(found, columns)
    distance = jnp.hypot(row + 0.5 - places[..., 0], column + 0.5 - places[..., 1])
    return tuple((counted & (distance <= within + _TOLERANCE)).sum() for within in WITHIN)


def chance(places: Float[np.ndarray, "places 2"], grid: tuple[int, int], within: int) -> float:
    """The share of places that would be found by taking each patch of the grid with the same probability.

    It is the mean over places of the share of patches whose centres are near enough.
    """
    places, times = np.unique(places, axis=0, return_counts=True)
    rows, columns = (np.arange(count) + 0.5 for count in grid)
    squared = (rows[:, None] - places[:, :1, None]) ** 2 + (columns - places[:, 1:, None]) ** 2
    return float(np.average((squared <= (within + _TOLERANCE) ** 2).mean((1, 2)), weights=times))


def make_matching(
    model: nnx.Module, pairs: Sequence[records.Pair], *, size: tuple[int, int], batch: int
) -> Callable[[PyTree], dict[str, float]]:
    """Builds `params → numbers` on fixed pairs, of which each has matched patches.

    Args:
      model: any that encodes; its parameters are not kept.
      size: whole views are resized to this (height, width), so that mined places stay where they are.
      batch: how many pairs are measured at a time.

    Returns:
      A function whose numbers are MATCHER_within_1 and MATCHER_within_2 for each of `matchers` and for `chance`: the
      share of all matched patches that are found within so many patches of their place.
    """
    graph, _ = nnx.split(model)
    batch = min(batch, len(pairs))
    view1, view2 = (np.stack([read_view(pair, name, size) for pair in pairs]) for name in ("view1", "view2"))
    grid = size[0] // model.sizes.patch_size, size[1] // model.sizes.patch_size
    truths = [truth(pair.correspondence, grid) for pair in pairs]
    # Datasets may have been mined on different grids.
    mined = max(len(each.patches) for each in truths)
    patches, places, matched = (
        np.stack([padded(getattr(each, name), mined) for each in truths]) for name in ("patches", "places", "matched")
    )
    matched &= np.arange(mined) < np.array([[len(each.patches)] for each in truths])
    total = int(matched.sum())
    by_chance = {f"{CHANCE}_within_{within}": chance(places[matched], grid, within) for within in WITHIN}

    @jax.jit
    def count(
        params: PyTree, view1: Array, view2: Array, patches: Array, places: Array, counted: Array
    ) -> dict[str, tuple[Array, ...]]:
        # Counts are scalars, which are whole on every host however the parameters are sharded.
        scores = matchers(nnx.merge(graph, params), center_crop(view1, size), center_crop(view2, size))
        found = {name: jnp.take_along_axis(each.argmax(-1), patches, axis=1) for name, each in scores.items()}
        return {name: hits(each, places, counted, grid[1]) for name, each in found.items()}

    def measure(params: PyTree) -> dict[str, float]:
        parts = []
        for start in range(0, len(pairs), batch):
            given = [padded(each[start : start + batch], batch) for each in (view1, view2, patches, places, matched)]
            given[-1] = given[-1] & (np.arange(start, start + batch) < len(pairs))[:, None]
            parts.append(count(params, *given))
        # Fetched once, so that the accelerator never waits for the host between batches.
        parts = hosts.fetch(parts)
        return by_chance | {
            f"{name}_within_{within}": float(sum(part[name][place] for part in parts) / total)
            for name in parts[0]
            for place, within in enumerate(WITHIN)
        }

    return measure
