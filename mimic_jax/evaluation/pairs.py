"""What a model can be measured on with pairs: completing views, and finding their patches in each other."""

import functools

from flax import nnx

from mimic_jax import records
from mimic_jax.data.mixture import Examples
from mimic_jax.data.pairs import read_pairs
from mimic_jax.data.source import spread
from mimic_jax.evaluation import completion as completing
from mimic_jax.evaluation import correspondences as matching
from mimic_jax.evaluation.mean import Mean, mean_over
from mimic_jax.nn.layout import Layout

# Pairs that are measured at a time.
BATCH = 64
COMPLETION, CORRESPONDENCE = "completion", "correspondence"


def make_measures(
    model: nnx.Module,
    examples: Examples,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    others: Examples | None = None,
    limits: dict[str, int] | int = 512,
    batch: int = BATCH,
    seed: int = 0,
    layout: Layout | None = None,
) -> tuple[dict[str, Mean], dict[str, str]]:
    """What a model can be measured on with these examples: completion, and correspondence.

    Args:
      model: of any kind; gives the sizes and the graph, its values are not kept.
      examples: pairs that the model was not trained on.
      size, crop: to complete views they are resized to `size` (height, width) and the middle `crop` is seen, as in
        training; to find patches whole views are resized to `crop`.
      others: where second views of other scenes come from if `examples` are all of one scene.
      limits: examples that are measured at most, spread evenly; by measure, or the same for both.
      batch: examples at a time.
      seed: decides the masks and the second views of other scenes.
      layout: how arrays are sharded; None: one device.

    Returns:
      By name, functions of the model's values, and the numbers that cannot be measured, with the reason.
      `completion`: error, error_wrong_view, error_black_view: mean squared error on hidden patches with the right
      second view, with one of another scene, and with black, on the same masks; ratio: error / error_wrong_view, 1 for
      a model that ignores the second view; psnr: of completed pixels, in decibels; pairs: examples measured. A model
      of one view has error and psnr.
      `correspondence`: correspondence_within_1, _2: share of the mined correspondences that the decoder's
      cross-attention, averaged over layers, finds within 1 and 2 patches; correspondence_best_layer, counted from 1,
      and its scores: the layer that is best at 1, chosen on these very pairs; features_within_1, _2: by nearest
      neighbour in encoder features; chance_within_1, _2: by taking any patch; layer_K_within_1, _2 of each layer.
    """
    limits = limits if isinstance(limits, dict) else {COMPLETION: limits, CORRESPONDENCE: limits}
    absent: dict[str, str] = {}
    measures: dict[str, Mean] = {}
    options = {"batch": batch, "layout": layout}
    spreads = {name: spread(examples, limit) for name, limit in limits.items()}
    # Most pairs are in both selections: each is read once.
    wanted = sorted({*spreads[COMPLETION], *spreads[CORRESPONDENCE]})
    pairs = dict(zip(wanted, read_pairs(examples, wanted), strict=True))
    if completing.predicts_pixels(model):
        indices = spreads[COMPLETION]
        other_pairs = None
        if model.views == 2:
            held_out = [pairs[index] for index in indices]
            other_pairs = _other_pairs(held_out, others, len(indices), seed)
            if other_pairs is None:
                scene = f"{held_out[0].source}/{held_out[0].scene}"
                absent["error_wrong_view, ratio"] = f"all pairs are of scene {scene}; another scene is needed"
        by_index = None if other_pairs is None else dict(zip(indices, other_pairs, strict=True))
        source = completing.completion_source(examples, size, model.views, by_index)
        measure = functools.partial(completing.measure_completion, crop=crop, seed=seed)
        measures[COMPLETION] = _with_ratio(mean_over(model, source, measure, indices=indices, **options), len(indices))
    else:
        absent["error, psnr"] = "the weights have no prediction head"
    matched = [index for index in spreads[CORRESPONDENCE] if (pairs[index].correspondence >= 0).any()]
    if matched:
        source = matching.correspondence_source(examples, crop, model.sizes.patch_size)
        measures[CORRESPONDENCE] = _with_best_layer(
            mean_over(model, source, matching.measure_correspondence, indices=matched, **options)
        )
    else:
        absent[CORRESPONDENCE] = "no pair has matched patches; mine a dataset from videos or images to have them"
    return measures, absent


def evaluate(model: nnx.Module, examples: Examples, **options) -> tuple[dict[str, float], dict[str, str]]:
    """All numbers for a model, those of each decoder layer among them; and the absent numbers, with the reason.

    Args:
      options: of `make_measures`.
    """
    measures, absent = make_measures(model, examples, **options)
    params, numbers = nnx.to_pure_dict(nnx.state(model)), {}
    for measure in measures.values():
        numbers |= measure(params)
    return numbers, absent


def without_layers(numbers: dict[str, float]) -> dict[str, float]:
    """The numbers without those of single decoder layers."""
    return {name: value for name, value in numbers.items() if not name.startswith("layer_")}


def _with_ratio(measure: Mean, pairs: int) -> Mean:
    def with_ratio(values) -> dict[str, float]:
        numbers = {"pairs": float(pairs)} | measure(values)
        if "error_wrong_view" in numbers:
            numbers["ratio"] = numbers["error"] / numbers["error_wrong_view"]
        return numbers

    return with_ratio


def _with_best_layer(measure: Mean) -> Mean:
    def with_best_layer(values) -> dict[str, float]:
        numbers = measure(values)
        for within in matching.WITHIN:
            if (score := numbers.pop(f"{matching.ATTENTION}_within_{within}", None)) is not None:
                numbers[f"{CORRESPONDENCE}_within_{within}"] = score
        return numbers | _best_layer(numbers)

    return with_best_layer


def _best_layer(numbers: dict[str, float]) -> dict[str, float]:
    nearest, *_ = matching.WITHIN
    layers = [int(name.split("_")[1]) for name in numbers if name.startswith("layer_") and name.endswith(f"_{nearest}")]
    if not layers:
        return {}
    best = max(layers, key=lambda layer: numbers[f"{matching.layer_name(layer)}_within_{nearest}"])
    prefix = f"{CORRESPONDENCE}_best_layer"
    scores = {
        f"{prefix}_within_{within}": numbers[f"{matching.layer_name(best)}_within_{within}"]
        for within in matching.WITHIN
    }
    return {prefix: float(best)} | scores


def _other_pairs(
    held_out: list[records.Pair], others: Examples | None, pairs: int, seed: int
) -> list[records.Pair] | None:
    """For each pair one of another scene: held-out ones, or where these are all of one scene, of the others."""
    found = completing.pairs_from_other_scenes(held_out, held_out, seed)
    if found is None and others is not None:
        found = completing.pairs_from_other_scenes(held_out, read_pairs(others, spread(others, pairs)), seed)
    return found
