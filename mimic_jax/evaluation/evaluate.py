"""What a model can do on pairs of scenes that it has not seen: complete views, and find their patches in each other."""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import PyTree

from mimic_jax import records
from mimic_jax.data.mixture import Examples
from mimic_jax.data.pairs import read_pairs, spread
from mimic_jax.evaluation.completion import completes, make_completion, strangers
from mimic_jax.evaluation.correspondences import ATTENTION, WITHIN, layer_name, make_matching
from mimic_jax.interop.weights import Weights

# What the training loop calls the attention's numbers.
_CORRESPONDENCE = "correspondence"


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """`evaluator(params) → numbers`, any number of times; see `make_evaluator`.

    pairs: how many are measured on.
    absent: what the data or the model do not allow to measure, and why.
    """

    pairs: int
    absent: dict[str, str]
    _measures: tuple[Callable[[PyTree], dict[str, float]], ...]

    def __call__(self, params: PyTree) -> dict[str, float]:
        """The numbers for one set of parameters, in whatever way they are sharded."""
        found = self.in_full(params)
        return {name: value for name, value in found.items() if not name.startswith("layer_")}

    def in_full(self, params: PyTree) -> dict[str, float]:
        """The same, and for each decoder layer K `layer_K_within_1` and `layer_K_within_2`."""
        found = {"pairs": float(self.pairs)}
        for measure in self._measures:
            found |= measure(params)
        for within in WITHIN:
            if (score := found.pop(f"{ATTENTION}_within_{within}", None)) is not None:
                found[f"{_CORRESPONDENCE}_within_{within}"] = score
        return found | _best_layer(found)


def make_evaluator(
    model: nnx.Module,
    examples: Examples,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    others: Examples | None = None,
    pairs: int = 512,
    batch: int = 64,
    seed: int = 0,
) -> Evaluator:
    """Reads pairs once, and builds what measures parameters on them.

    Args:
      model: of any kind; gives the sizes and the graph, its parameters are not kept.
      examples: pairs held out from training.
      size, crop: to complete views they are resized to `size` (height, width) and the middle `crop` is seen, as in
        training; to find patches whole views are resized to `crop`.
      others: where wrong second views come from if `examples` are all of one scene.
      pairs: at most this many, spread evenly over the examples.
      batch: how many pairs are measured at a time.
      seed: decides the masks and the wrong second views, which every call has the same.

    Returns:
      An Evaluator whose numbers are, where model and data allow:

      - error, error_wrong_view, error_black_view: mean squared error on hidden patches with the right second view, with
        one of another scene, and with black, on the same masks. ratio: error / error_wrong_view; 1 for a model that
        ignores the second view. psnr: of completed pixels, in decibels. A model of one view has error and psnr.
      - correspondence_within_1, correspondence_within_2: share of the mined correspondences that the decoder's
        cross-attention, averaged over layers, finds within 1 and 2 patches. correspondence_best_layer, counted from 1,
        and its correspondence_best_layer_within_1 and _2: the layer that is best at 1, chosen on these very pairs.
        features_within_1, features_within_2: by nearest neighbour in encoder features. chance_within_1,
        chance_within_2: by taking any patch.
      - pairs: how many were measured.
    """
    held_out = read_pairs(examples, spread(examples, pairs))
    absent, measures = {}, []
    if completes(model):
        wrong = None
        if model.views == 2:
            wrong = _wrong(held_out, others, pairs, seed)
            if wrong is None:
                scene = f"{held_out[0].source}/{held_out[0].scene}"
                absent["error_wrong_view, ratio"] = (
                    f"all pairs are of scene {scene}; a wrong second view needs another scene"
                )
        measures.append(make_completion(model, held_out, wrong, size=size, crop=crop, batch=batch, seed=seed))
    else:
        absent["error, psnr"] = "the weights have no prediction head"
    matched = [pair for pair in held_out if (pair.correspondence >= 0).any()]
    if matched:
        measures.append(make_matching(model, matched, size=crop, batch=batch))
    else:
        absent[_CORRESPONDENCE] = "no pair has matched patches; mine a dataset from videos or images to have them"
    return Evaluator(len(held_out), absent, tuple(measures))


def evaluate(
    weights: Weights,
    examples: Examples,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    pairs: int = 512,
    batch: int = 64,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, str]]:
    """All numbers for some weights, each decoder layer's among them, and what is absent, and why."""
    evaluator = make_evaluator(weights.model(), examples, size=size, crop=crop, pairs=pairs, batch=batch, seed=seed)
    return evaluator.in_full(jax.device_put(weights.params)), evaluator.absent


def _wrong(held_out: list[records.Pair], others: Examples | None, pairs: int, seed: int) -> list[records.Pair] | None:
    """For each pair one of another scene: of the held-out ones, or where these are all of one scene, of the others."""
    found = strangers(held_out, held_out, seed)
    if found is None and others is not None:
        found = strangers(held_out, read_pairs(others, spread(others, pairs)), seed)
    return found


def _best_layer(found: dict[str, float]) -> dict[str, float]:
    nearest, *_ = WITHIN
    layers = [int(name.split("_")[1]) for name in found if name.startswith("layer_") and name.endswith(f"_{nearest}")]
    if not layers:
        return {}
    best = max(layers, key=lambda layer: found[f"{layer_name(layer)}_within_{nearest}"])
    prefix = f"{_CORRESPONDENCE}_best_layer"
    scores = {f"{prefix}_within_{within}": found[f"{layer_name(best)}_within_{within}"] for within in WITHIN}
    return {prefix: float(best)} | scores
