"""Monocular depth: MIMIC's and CroCo's evaluation on NYUv2, with published and standard losses and metrics."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mimic_jax import sections
from mimic_jax.evaluation import depth as metrics
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn import losses
from mimic_jax.sections import setting
from mimic_jax.task import Task
from mimic_jax.tasks.dense import DenseTask, Head, make_dense
from mimic_jax.viz.dense import draw_depths

Prediction = Float[Array, "rows height width 1"]
Depth = Float[Array, "rows height width"]

LOSSES = {"berhu": losses.berhu, "l1": losses.masked_l1, "mse": losses.masked_mse, "silog": losses.silog}
# The scale of the head's output: metres, their natural logarithm, or MultiMAE's standardised units of NYUv2.
TO_METRES = {"metres": lambda value: value, "log": jnp.exp, "multimae": metrics.to_metres}
FROM_METRES = {"metres": lambda value: value, "log": jnp.log, "multimae": metrics.standardize}


@dataclasses.dataclass(frozen=True)
class DepthHead(Head):
    """The section of depth."""

    loss: str = setting(
        "berHu with each image's own threshold, mean absolute or squared error, or scale-invariant logarithmic error.",
        choices=tuple(LOSSES),
    )
    scale: str = setting(
        "Scale of the head's output and of the loss: metres, ln metres, or MultiMAE's units. SILog is taken on metres.",
        choices=tuple(TO_METRES),
    )


@dataclasses.dataclass(frozen=True)
class DepthEvaluation:
    """Standard metrics: the mean over images, and pooled over pixels."""

    every: int = setting("Steps between two evaluations. 0: none.", low=0)
    examples: int = setting("Images that are measured at most, spread evenly.", low=1)
    pictures: int = setting("Images in the picture of predictions. 0: no picture.", low=0)
    cap: tuple[float, float] | None = setting("Lowest and highest depth that is compared, in metres. None: all.", low=0)
    eigen: bool = setting("Whether only the crop of Eigen et al. is compared, scaled to the image.")


@dataclasses.dataclass(frozen=True)
class DepthEvaluations:
    """The evaluations of depth."""

    depth: DepthEvaluation = setting("Depth of validation images.")


def make(config: ConfigDict, known: Sizes | None = None) -> Task:
    """The task of a config.

    Args:
      known: sizes of the weights that the run starts from, or of the run that it resumes.

    Raises:
      InputError: a field of the config is missing, unknown or cannot be used.
    """
    head = sections.read(DepthHead, config.get("depth", {}), "config.depth")
    evaluation = sections.read(DepthEvaluations, config.evals, "config.evals").depth

    def to_metres(prediction: Prediction) -> Depth:
        return TO_METRES[head.scale](prediction.astype(jnp.float32))[..., 0]

    def loss(prediction: Prediction, depth: Depth) -> tuple[Array, Array]:
        valid = depth > 0
        if head.loss == "silog":
            return losses.silog(to_metres(prediction)[..., None], depth[..., None], valid)
        target = FROM_METRES[head.scale](jnp.where(valid, depth, 1))
        return LOSSES[head.loss](prediction, target[..., None], valid)

    def measure(prediction: Prediction, depth: Depth) -> dict[str, Array]:
        return metrics.measure(to_metres(prediction), depth, depth > 0, cap=evaluation.cap, eigen=evaluation.eigen)

    task = DenseTask(
        name="depth",
        channels=1,
        loss=loss,
        measure=measure,
        finish=metrics.finish,
        draw=draw_depths,
        predict=to_metres,
        best=("depth_absrel", "min"),
    )
    return make_dense(config, known, task, head, evaluation.every, evaluation.examples, evaluation.pictures)
