"""Whether a model uses the second view: its error with the right one and with one of another scene."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.augment import center_crop
from mimic_jax.data.pairs import read_pairs, read_views
from mimic_jax.models.croco import CroCo


def second_view_errors(
    model: CroCo, dataset: records.Dataset, *, size: int, crop: int, seed: int = 0, pairs: int = 512, batch: int = 64
) -> dict[str, float]:
    """The masked-patch error on held-out pairs, with the right second view and with one from another scene.

    A model that ignores the second view has a ratio of 1; the lower, the more it uses it.

    Args:
      model: completes view 1 from view 2.
      dataset: pairs of at least two scenes, held out from training.
      size, crop: views are resized to `size` pixels a side; the middle `crop` of them are seen.
      seed: decides the masks; both errors have the same ones.
      pairs: at most this many, spread evenly over the dataset.

    Returns:
      `right`, `wrong`: mean squared errors; `ratio`: right / wrong; `pairs`: how many were measured.

    Raises:
      InputError: the dataset has one scene only.
    """
    indices = np.linspace(0, len(dataset) - 1, min(pairs, len(dataset))).round().astype(int)
    found = read_pairs(dataset, indices.tolist())
    views = [read_views(pair, size) for pair in found]
    view1, view2 = (np.stack([view[name] for view in views]) for name in ("view1", "view2"))
    second_views = {"right": view2, "wrong": view2[_of_another_scene([pair.scene for pair in found], seed, dataset)]}

    graph, params = nnx.split(model)

    @jax.jit
    def errors(params: PyTree, key: PRNGKeyArray, view1: Array, view2: Array) -> Float[Array, " batch"]:
        model = nnx.merge(graph, params)
        view1, view2 = center_crop(view1, crop), center_crop(view2, crop)
        return model.loss(view1, view2, model.random_visible(key, view1))

    means = {}
    for name, second_view in second_views.items():
        parts = [
            # The key tells the masks, so that both second views are judged on the same ones.
            errors(
                params, jax.random.key(seed + start), view1[start : start + batch], second_view[start : start + batch]
            )
            for start in range(0, len(indices), batch)
        ]
        means[name] = float(np.concatenate(parts).mean())
    return means | {"ratio": means["right"] / means["wrong"], "pairs": len(indices)}


def _of_another_scene(scenes: list[str], seed: int, dataset: records.Dataset) -> Int[np.ndarray, " pairs"]:
    if len(set(scenes)) < 2:
        raise InputError(f"{dataset.folder}: has one scene only; a second view of another scene needs two or more")
    rng = np.random.default_rng(seed)
    names = np.array(scenes)
    return np.array([rng.choice(np.flatnonzero(names != scene)) for scene in scenes])
