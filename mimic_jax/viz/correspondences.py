"""Where a model looks: view 1 with each patch in a colour of its own, and view 2 painted by what looks there."""

from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from mimic_jax import records
from mimic_jax.data.augment import center_crop
from mimic_jax.data.pairs import read_views
from mimic_jax.evaluation.correspondences import ATTENTION, FEATURES, hits, matchers, truth
from mimic_jax.viz.pictures import Picture, enlarge, grid, label, place_colours, tint, tint_matches

Scores = Float[np.ndarray, "patches context_patches"]
Grid = tuple[int, int]

# Small views are enlarged to about so many pixels a side.
_CELL = 256
_GAP = 12
# So many of the surest patches get a line.
_LINES = 16
_LEGEND = "left: view 1, coloured by place; middle: view 2 in the colours of what is found there; right: the surest"


def draw_two_views(
    model: nnx.Module,
    view1: UInt8[np.ndarray, "height width 3"],
    view2: UInt8[np.ndarray, "height width 3"],
) -> Picture:
    """Where each patch of view 1 is found in view 2: a row for each way of finding it.

    The ways are the decoder's cross-attention, as the mean over layers and of the layer whose matches most often lead
    back (there is no truth to choose by), and nearest neighbours in encoder features, which all models have. Each row
    has view 1 coloured by place, view 2 painted by what is found there and dark where nothing is, and lines for some
    of the surest patches.

    Args:
      view1, view2: RGB, of one size that the patch size divides.
    """
    cells = view1.shape[0] // model.sizes.patch_size, view1.shape[1] // model.sizes.patch_size
    there, back = (
        {name: each[0] for name, each in _scores(model, *views).items()}
        for views in ((view1[None], view2[None]), (view2[None], view1[None]))
    )
    returns = {name: returning(there[name].argmax(-1), back[name].argmax(-1), cells) for name in there}
    titles = {FEATURES: "nearest neighbours in encoder features"}
    if layers := [name for name in there if name.startswith("layer_")]:
        best = max(layers, key=returns.get)
        means = {ATTENTION: f"cross-attention, mean of {len(layers)} layers"}
        bests = {best: f"cross-attention, {best.replace('_', ' ')}: of all layers, its matches lead back most often"}
        titles = means | bests | titles
    factor = max(1, _CELL // max(view1.shape[:2]))
    view1, view2 = enlarge(view1, factor), enlarge(view2, factor)
    gap = np.full((view1.shape[0], _GAP, 3), 255, np.uint8)
    rows = []
    for name, title in titles.items():
        painted = paint(view1, view2, there[name].argmax(-1), cells)
        lines = draw_lines(view1, view2, there[name], cells)
        row = np.concatenate([painted[0], gap, painted[1], gap, lines], axis=1)
        rows.append([label(row, f"{title} ({returns[name]:.0%} lead back to within a patch)")])
    return grid(rows, [_LEGEND])


def draw_pairs(model: nnx.Module, pairs: Sequence[records.Pair], size: tuple[int, int]) -> Picture:
    """Pairs in rows, with what mining found beside what the model finds.

    Columns: view 1 coloured by place; view 2 painted by the mean over layers, by the layer that is best on these
    pairs, and by encoder features, as far as the model has them; both views with the mined correspondences alone.

    Args:
      size: whole views are resized to this (height, width), which the patch size divides.
    """
    cells = size[0] // model.sizes.patch_size, size[1] // model.sizes.patch_size
    views = [read_views(pair, size) for pair in pairs]
    scores = _scores(model, *(np.stack([view[name] for view in views]) for name in ("view1", "view2")))
    titles = {FEATURES: "by encoder features"}
    if layers := [name for name in scores if name.startswith("layer_")]:
        found = {name: sum(_found(pair, scores[name][row], cells) for row, pair in enumerate(pairs)) for name in layers}
        best = max(layers, key=found.get)
        titles = {ATTENTION: "by mean attention", best: f"by {best.replace('_', ' ')}, the best"} | titles
    factor = max(1, _CELL // max(size))
    rows = []
    for row, (pair, view) in enumerate(zip(pairs, views, strict=True)):
        view1, view2 = (enlarge(view[name], factor) for name in ("view1", "view2"))
        painted = {name: paint(view1, view2, scores[name][row].argmax(-1), cells) for name in titles}
        first = next(iter(painted.values()))[0]
        rows.append([first, *(each[1] for each in painted.values()), *tint_matches(view1, view2, pair.correspondence)])
    headings = ["view 1", *(f"view 2 {title}" for title in titles.values()), "view 1, mined", "view 2, mined"]
    return grid(rows, headings)


def paint(view1: Picture, view2: Picture, found: Int[np.ndarray, " patches"], cells: Grid) -> tuple[Picture, Picture]:
    """View 1 with every patch in a colour of its own, and view 2 with each patch in the mean colour of what is found
    there, dark where nothing is.

    Args:
      found: for each patch of view 1 the patch of view 2, row-major.
      cells: rows and columns of patches.
    """
    colours = place_colours(cells)
    sums = np.zeros_like(colours)
    np.add.at(sums, found, colours)
    there, times = np.unique(found, return_counts=True)
    painted = tint(view2, there, sums[there] / times[:, None], cells)
    return tint(view1, np.arange(len(colours)), colours, cells), painted


def draw_lines(view1: Picture, view2: Picture, scores: Scores, cells: Grid) -> Picture:
    """Both views side by side, with lines from some of the surest patches of view 1 to where they are found."""
    height, width, _ = view1.shape
    canvas = np.concatenate([view1, np.full((height, _GAP, 3), 255, np.uint8), view2], axis=1)
    colours = place_colours(cells)
    for patch in surest_patches(scores, cells):
        # Both ends a little up or down by the column: else lines of one row would often lie on each other.
        down = 0.2 + 0.6 * (patch % cells[1] + 0.5) / cells[1]
        (y1, x1), (y2, x2) = (
            ((place // cells[1] + down) * height / cells[0], (place % cells[1] + 0.5) * width / cells[1])
            for place in (patch, int(scores[patch].argmax()))
        )
        start, end = (round(x1), round(y1)), (round(x2) + width + _GAP, round(y2))
        # A dark rim keeps a line visible on views of its own colour.
        for colour, thickness in (((0, 0, 0), 3), (colours[patch].tolist(), 1)):
            cv2.line(canvas, start, end, colour, thickness, cv2.LINE_AA)
            for point in (start, end):
                cv2.circle(canvas, point, 2 + thickness // 2, colour, -1, cv2.LINE_AA)
    return canvas


def surest_patches(scores: Scores, cells: Grid) -> list[int]:
    """Patches of view 1 with the highest scores, none closer to another than their number lets them be when spread."""
    apart = (cells[0] * cells[1] / _LINES) ** 0.5
    chosen: list[int] = []
    for patch in np.argsort(-scores.max(-1), kind="stable").tolist():
        row, column = divmod(patch, cells[1])
        if all(np.hypot(row - other // cells[1], column - other % cells[1]) >= apart for other in chosen):
            chosen.append(patch)
    return chosen[:_LINES]


def returning(there: Int[np.ndarray, " patches"], back: Int[np.ndarray, " patches"], cells: Grid) -> float:
    """The share of patches of view 1 that are found in view 2 where a patch is that is found within one patch of them.

    Args:
      there: for each patch of view 1 the patch of view 2. back: the same with the views exchanged.
      cells: rows and columns of patches.
    """
    (row, column), (row_back, column_back) = (
        np.divmod(each, cells[1]) for each in (np.arange(len(there)), back[there])
    )
    return float((np.hypot(row - row_back, column - column_back) <= 1).mean())


def _scores(model: nnx.Module, view1: np.ndarray, view2: np.ndarray) -> dict[str, np.ndarray]:
    graph, params = nnx.split(model)
    size = view1.shape[1:3]

    @jax.jit
    def score(params, view1, view2):
        return matchers(nnx.merge(graph, params), center_crop(view1, size), center_crop(view2, size))

    return jax.tree.map(np.asarray, score(params, view1, view2))


def _found(pair: records.Pair, scores: Scores, cells: Grid) -> int:
    """How many of the mined correspondences are found."""
    true = truth(pair.correspondence, cells)
    found = scores.argmax(-1)[true.patches]
    given = (jnp.asarray(each[None]) for each in (found, true.places, true.matched))
    return hits(*given, cells[1])[0].item()
