"""What a model makes of hidden patches: masked view 1, view 2, completed view 1, view 1."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

from mimic_jax import hosts
from mimic_jax.command import InputError
from mimic_jax.data.augment import center_crop, denormalize
from mimic_jax.data.mixture import Examples
from mimic_jax.data.pairs import read_pairs, read_views
from mimic_jax.models import completion
from mimic_jax.nn.patches import grid_of, patchify, unpatchify
from mimic_jax.viz.pictures import Picture, enlarge, grid, to_uint8

Draw = Callable[[PyTree], Picture]

# Small views are enlarged to about so many pixels a side.
_CELL = 160


def make_drawer(
    model: nnx.Module,
    examples: Examples,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    rows: int = 8,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> Draw:
    """Builds `params → picture` of pairs spread evenly over the examples, with the same masks every time.

    Args:
      model: completes views; its parameters are not kept.
      size, crop: views are resized to `size` (height, width); the middle `crop` of them is seen.
      rows: how many pairs.
      mask_ratio, seed: as in `make_drawer_of_views`.

    Raises:
      InputError: as in `make_drawer_of_views`.
    """
    # The middles of equal parts, so that scenes at the ends are no more likely than others.
    places = ((np.arange(rows) + 0.5) * len(examples) / rows).astype(int).tolist()
    views = [read_views(pair, size) for pair in read_pairs(examples, places)]
    stacked = [np.stack([view[name] for view in views]) for name in ("view1", "view2")]
    cropped = [_bytes(center_crop(jnp.asarray(each), crop)) for each in stacked]
    return make_drawer_of_views(model, cropped, mask_ratio=mask_ratio, seed=seed)


def make_drawer_of_views(
    model: nnx.Module,
    views: Sequence[UInt8[np.ndarray, "rows height width 3"]],
    *,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> Draw:
    """Builds `params → picture`: a row for each first view, masked, with the second view, completed, and as it is.

    A model trained on normalised patches predicts each patch up to its mean and spread: the picture takes those two
    from the true patch (as MAE's published pictures do). Visible patches are shown as they are.

    Args:
      model: completes views; its parameters are not kept. One of one view has no second view in its pictures.
      views: first and second views, RGB, of a size that the patch size divides; for a model of one view the first.
      mask_ratio: the share of patches that is hidden; the model's own by default.
      seed: decides the masks.

    Raises:
      InputError: at that ratio nothing is hidden, or everything.
    """
    graph, _ = nnx.split(model)
    sizes = model.sizes if mask_ratio is None else dataclasses.replace(model.sizes, mask_ratio=mask_ratio)
    bytes_shown = views[: model.views]
    shown = [center_crop(jnp.asarray(each), each.shape[1:3]) for each in bytes_shown]
    rows, columns = grid_of(shown[0], sizes.patch_size)
    if not 0 < sizes.visible(rows * columns) < rows * columns:
        raise InputError(
            f"--mask_ratio={sizes.mask_ratio} of {rows} × {columns} patches leaves {sizes.visible(rows * columns)} "
            "visible; some must be hidden and some not"
        )
    visible = completion.random_visible(jax.random.key(seed), shown[0], sizes)
    hidden = np.asarray(completion.mask(shown[0], visible, sizes))[..., None]
    # NumPy's, as every process of a run has the same.
    visible, shown = np.asarray(visible), [np.asarray(each) for each in shown]
    true = patchify(shown[0], sizes.patch_size)

    @jax.jit
    def complete(params: PyTree, views: Sequence[Array], visible: Array) -> Array:
        prediction = nnx.merge(graph, params)(*views, visible).astype(jnp.float32)
        return completion.to_pixels(prediction, views[0], sizes)

    def picture(patches: np.ndarray) -> np.ndarray:
        return _bytes(unpatchify(patches, sizes.patch_size, rows, columns))

    def draw(params: PyTree) -> Picture:
        cells = {
            "masked view 1": picture(np.where(hidden, 0, true)),
            **({"view 2": bytes_shown[1]} if model.views == 2 else {}),
            "completed view 1": picture(np.where(hidden, hosts.fetch(complete(params, shown, visible)), true)),
            "view 1": bytes_shown[0],
        }
        factor = max(1, _CELL // max(shown[0].shape[1:3]))
        return grid([[enlarge(cell[row], factor) for cell in cells.values()] for row in range(len(true))], list(cells))

    return draw


def _bytes(images: Float[Array | np.ndarray, "rows height width 3"]) -> UInt8[np.ndarray, "rows height width 3"]:
    """Normalised images as they are shown."""
    return to_uint8(np.asarray(denormalize(jnp.asarray(images))))
