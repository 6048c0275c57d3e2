"""Whether a model uses the second view: its error with the right one and with one of another scene."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.augment import center_crop
from mimic_jax.data.pairs import read_pairs, read_view
from mimic_jax.models.croco import CroCo


def second_view_errors(
    model: CroCo,
    dataset: records.Dataset,
    *,
    others: records.Dataset | None = None,
    size: int,
    crop: int,
    seed: int = 0,
    pairs: int = 512,
    batch: int = 64,
) -> dict[str, float]:
    """The masked-patch error on held-out pairs, with the right second view and with one from another scene.

    A model that ignores the second view has a ratio of 1; the lower, the more it uses it.

    Args:
      model: completes view 1 from view 2.
      dataset: pairs held out from training.
      others: where second views of other scenes come from; `dataset` itself by default.
      pairs: at most this many, spread evenly over the dataset.
      batch: how many are measured at a time.
      size, crop: views are resized to `size` pixels a side; the middle `crop` of them are seen.
      seed: decides the masks; both errors have the same ones.

    Returns:
      `right`, `wrong`: mean squared errors; `ratio`: right / wrong; `pairs`: how many were measured.

    Raises:
      InputError: the dataset has one scene only.
    """
    held_out = _spread(dataset, pairs)
    view1, view2 = _stack(held_out, "view1", size), _stack(held_out, "view2", size)
    strangers = _strangers(held_out, _spread(others or dataset, pairs), seed)
    second_views = {"right": view2, "wrong": _stack(strangers, "view2", size)}

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
            for start in range(0, len(held_out), batch)
        ]
        means[name] = float(np.concatenate(parts).mean())
    return means | {"ratio": means["right"] / means["wrong"], "pairs": len(held_out)}


def _spread(dataset: records.Dataset, pairs: int) -> list[records.Pair]:
    indices = np.linspace(0, len(dataset) - 1, min(pairs, len(dataset))).round().astype(int)
    return read_pairs(dataset, indices.tolist())


def _stack(pairs: list[records.Pair], view: str, size: int) -> UInt8[np.ndarray, "pairs {size} {size} 3"]:
    return np.stack([read_view(pair, view, size) for pair in pairs])


def _strangers(pairs: list[records.Pair], pool: list[records.Pair], seed: int) -> list[records.Pair]:
    """For each pair one of another scene, drawn from the pool."""
    rng = np.random.default_rng(seed)
    scenes = np.array([pair.scene for pair in pool])
    candidates = [np.flatnonzero(scenes != pair.scene) for pair in pairs]
    if not all(len(places) for places in candidates):
        raise InputError(f"all pairs are of scene {pairs[0].scene!r}; a wrong second view needs another scene")
    return [pool[rng.choice(places)] for places in candidates]
