"""Correspondences between the patches of two views, from a model that was not trained to match.

A decoder that completes view 1 from view 2 must know where to look: its cross-attention is a matcher (arXiv
2412.09072). It is compared with nearest neighbours in encoder features, and with chance, on mined correspondences.
All distances are Euclidean, in patches of the model.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int16

from mimic_jax.command import InputError
from mimic_jax.data.augment import center_crop
from mimic_jax.data.mixture import Examples
from mimic_jax.data.pairs import pairs_source, read_view
from mimic_jax.data.source import Source
from mimic_jax.data.stored import Stored
from mimic_jax.evaluation.mean import Batch, Measures
from mimic_jax.models.completion import Images
from mimic_jax.nn.patches import grid_of

# A patch counts as found within so many patches of its true place …
WITHIN = (1, 2)
# … where distances that are whole numbers may come out a little above.
_TOLERANCE = 1e-4

ATTENTION, FEATURES, CHANCE = "attention", "features", "chance"


def has_cross_attention(model: nnx.Module) -> bool:
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
    if has_cross_attention(model):
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
) -> tuple[Int[Array, " pairs"], ...]:
    """For each distance of WITHIN, the number of a pair's counted patches that are found within it.

    Args:
      found: the model's patch that each was found in.
      places: (row, column) of its true position, in patches.
      columns: of the model's grid.
    """
    row, column = jnp.divmod(found, columns)
    distance = jnp.hypot(row + 0.5 - places[..., 0], column + 0.5 - places[..., 1])
    return tuple((counted & (distance <= within + _TOLERANCE)).sum(-1) for within in WITHIN)


def chance(places: Float[Array, "*shape 2"], grid: tuple[int, int], within: int) -> Float[Array, "*shape"]:
    """The probability of finding each position by taking any patch of the grid: the share of patches near enough."""
    rows, columns = (np.arange(count) + 0.5 for count in grid)
    squared = (rows[:, None] - places[..., :1, None]) ** 2 + (columns - places[..., 1:, None]) ** 2
    return (squared <= (within + _TOLERANCE) ** 2).mean((-2, -1))


def correspondence_source(examples: Examples, size: tuple[int, int], patch: int) -> Source:
    """Pairs with their mined correspondences on the grid of a model's patches.

    Args:
      size: whole views are resized to this (height, width), so that mined positions stay where they are.
      patch: the model's patch size, which divides it.

    Returns:
      A source of view1, view2, and for each mined patch `patches`, `places`, `matched`, see `Truth`.

    Raises:
      InputError: from the source: the correspondences are of no square grid.
    """
    source = pairs_source(examples, size=size)
    mined = max(dataset.patches for dataset in examples.mixture.datasets)
    truths = {"patches": ((mined,), np.int32), "places": ((mined, 2), np.float32), "matched": ((mined,), np.bool_)}
    spec = source.spec | {name: jax.ShapeDtypeStruct(*each) for name, each in truths.items()}
    return dataclasses.replace(source, spec=spec, read=_WithTruth(Stored.of(examples), tuple(size), patch))


def measure_correspondence(model: nnx.Module, batch: Batch) -> Measures:
    """The share of matched patches that each of `matchers`, and chance, finds within each distance of WITHIN.

    Args:
      batch: of `correspondence_source`.

    Returns:
      MATCHER_within_1 and MATCHER_within_2, weighted by the matched patches of a pair.
    """
    size = batch["view1"].shape[1:3]
    columns = size[1] // model.sizes.patch_size
    grid = size[0] // model.sizes.patch_size, columns
    patches, places, matched = (batch[name] for name in ("patches", "places", "matched"))
    count = matched.sum(-1).astype(jnp.float32)
    some = jnp.maximum(count, 1)
    scores = matchers(model, center_crop(batch["view1"], size), center_crop(batch["view2"], size))
    measures = {}
    for name, each in scores.items():
        found = jnp.take_along_axis(each.argmax(-1), patches, axis=1)
        for within, right in zip(WITHIN, hits(found, places, matched, columns), strict=True):
            measures[f"{name}_within_{within}"] = (right / some, count)
    for within in WITHIN:
        likely = jnp.where(matched, chance(places, grid, within), 0).sum(-1)
        measures[f"{CHANCE}_within_{within}"] = (likely / some, count)
    return measures


@dataclasses.dataclass(frozen=True, eq=False)
class _WithTruth:
    """`Source.read` of pairs with their mined correspondences."""

    stored: Stored
    size: tuple[int, int]
    patch: int

    def __call__(self, index: int, row: dict[str, np.ndarray]) -> None:
        pair = self.stored.read(index)
        for name in ("view1", "view2"):
            row[name][:] = read_view(pair, name, self.size)
        found = truth(pair.correspondence, (self.size[0] // self.patch, self.size[1] // self.patch))
        mined = len(found.patches)  # datasets may have been mined on different grids
        for name in ("patches", "places", "matched"):
            row[name][:mined] = getattr(found, name)
            row[name][mined:] = 0
