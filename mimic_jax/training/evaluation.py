"""Evaluation at steps of a training run: numbers into its metrics, pictures into TensorBoard."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import PyTree
from ml_collections import ConfigDict

from mimic_jax import hosts
from mimic_jax.data.mixture import Examples
from mimic_jax.evaluation.evaluate import make_evaluator
from mimic_jax.training.experiment import Experiment
from mimic_jax.training.metrics import Metrics
from mimic_jax.viz.reconstruction import make_drawer

Evaluation = Callable[[int, PyTree, Metrics | None], None]


def make_evaluation(
    config: ConfigDict, experiment: Experiment, model: nnx.Module, examples: Examples, held_out: Examples | None
) -> Evaluation | None:
    """Builds `(step, params, metrics) → None`, which evaluates, by all processes, and tells those that have metrics.

    Args:
      model: what is trained; its parameters are not kept.
      examples: what is trained on; where all of `held_out` is one scene, wrong second views are of these.
      held_out: what is evaluated on.

    Returns:
      None where there is nothing to evaluate on, or config.eval.every is 0.
    """
    if held_out is None or not config.eval.every:
        return None
    evaluate = make_evaluator(
        model,
        held_out,
        others=examples,
        size=experiment.size,
        crop=experiment.crop,
        pairs=config.eval.pairs,
        batch=min(64, experiment.records),
    )
    for what, why in evaluate.absent.items():
        hosts.first_says(f"warning: not evaluated: {what}: {why}")
    draw = None
    if config.eval.pictures:
        rows = min(config.eval.pictures, len(held_out))
        draw = make_drawer(model, held_out, size=experiment.size, crop=experiment.crop, rows=rows)

    def evaluation(step: int, params: PyTree, metrics: Metrics | None) -> None:
        numbers, picture = evaluate(params), draw(params) if draw else None
        if metrics:
            metrics.write_evaluation(step, numbers)
        if metrics and picture is not None:
            metrics.add_picture(step, "reconstruction", picture)

    return evaluation
