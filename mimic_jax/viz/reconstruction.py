"""What a model makes of hidden patches: masked view 1, view 2, completed view 1, view 1."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mimic_jax import records
from mimic_jax.data.augment import center_crop, denormalize
from mimic_jax.data.pairs import read_pairs, read_views
from mimic_jax.models.croco import CroCo
from mimic_jax.nn.patches import patchify, unpatchify
from mimic_jax.viz.pictures import Picture, enlarge, grid, to_uint8

HEADINGS = ("masked view 1", "view 2", "completed view 1", "view 1")


def draw_reconstructions(
    model: CroCo, dataset: records.Dataset, *, size: int, crop: int, rows: int = 8, seed: int = 0
) -> Picture:
    """Rows of masked view 1, view 2, completed view 1 and view 1, of pairs spread evenly over the dataset.

    A model trained on normalised patches predicts each patch up to its mean and spread: the picture takes those two
    from the true patch (as MAE's published pictures do). Visible patches are shown as they are.

    Args:
      size, crop: views are resized to `size` pixels a side; the middle `crop` of them are seen.
      rows: how many pairs.
      seed: decides the masks.
    """
    # The middles of equal parts, so that scenes at the ends are no more likely than others.
    indices = ((np.arange(rows) + 0.5) * len(dataset) / rows).astype(int)
    views = [read_views(pair, size) for pair in read_pairs(dataset, indices.tolist())]
    view1, view2 = (center_crop(jnp.stack([view[name] for view in views]), crop) for name in ("view1", "view2"))

    visible = model.random_visible(jax.random.key(seed), view1)
    graph, params = nnx.split(model)
    prediction = jax.jit(lambda params, *views: nnx.merge(graph, params)(*views))(params, view1, view2, visible)
    hidden = np.asarray(model.mask(view1, visible))[..., None]

    patch = model.sizes.patch_size
    true = np.asarray(patchify(view1, patch))
    predicted = np.asarray(prediction)
    if model.sizes.norm_pix_loss:
        predicted = predicted * true.std(-1, ddof=1, keepdims=True) + true.mean(-1, keepdims=True)

    def picture(patches: np.ndarray) -> np.ndarray:
        side = crop // patch
        return to_uint8(np.asarray(denormalize(jnp.asarray(unpatchify(patches, patch, side, side)))))

    columns = (
        picture(np.where(hidden, 0, true)),
        to_uint8(np.asarray(denormalize(view2))),
        picture(np.where(hidden, predicted, true)),
        to_uint8(np.asarray(denormalize(view1))),
    )
    factor = max(1, 160 // crop)
    return grid([[enlarge(column[row], factor) for column in columns] for row in range(rows)], HEADINGS)
