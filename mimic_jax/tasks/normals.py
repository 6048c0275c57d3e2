"""Surface normals: MIMIC's evaluation on Taskonomy, with published and standard losses and metrics.

The head predicts encodings v = (n + 1) / 2 of unit normals n in camera axes, as Taskonomy stores them.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mimic_jax import sections
from mimic_jax.evaluation import normals as metrics
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn import losses
from mimic_jax.sections import setting
from mimic_jax.task import Task
from mimic_jax.tasks.dense import DenseTask, Head, make_dense
from mimic_jax.viz.dense import draw_normal_maps

Normals = Float[Array, "rows height width 3"]


@dataclasses.dataclass(frozen=True)
class NormalsHead(Head):
    """The section of normals."""

    loss: str = setting(
        "Mean absolute error of encodings (MultiMAE), or 1 − cosine of the angle.", choices=("l1", "cosine")
    )


@dataclasses.dataclass(frozen=True)
class NormalsEvaluation:
    """Angles between predicted and true normals, and the published error of encodings."""

    every: int = setting("Steps between two evaluations. 0: none.", low=0)
    examples: int = setting("Images that are measured at most, spread evenly.", low=1)
    pictures: int = setting("Images in the picture of predictions. 0: no picture.", low=0)


@dataclasses.dataclass(frozen=True)
class NormalsEvaluations:
    """The evaluations of normals."""

    normals: NormalsEvaluation = setting("Normals of validation images.")


def make(config: ConfigDict, known: Sizes | None = None) -> Task:
    """The task of a config.

    Args:
      known: sizes of the weights that the run starts from, or of the run that it resumes.

    Raises:
      InputError: a field of the config is missing, unknown or cannot be used.
    """
    head = sections.read(NormalsHead, config.get("normals", {}), "config.normals")
    evaluation = sections.read(NormalsEvaluations, config.evals, "config.evals").normals

    def decode(encodings: Normals) -> Normals:
        return 2 * encodings.astype(jnp.float32) - 1

    def valid(normals: Normals) -> Array:
        return (normals != 0).any(-1)

    def loss(prediction: Normals, normals: Normals) -> tuple[Array, Array]:
        if head.loss == "cosine":
            return losses.cosine(decode(prediction), normals, valid(normals))
        return losses.masked_l1(prediction, (normals + 1) / 2, valid(normals))

    task = DenseTask(
        name="normals",
        channels=3,
        loss=loss,
        measure=lambda prediction, normals: metrics.measure(decode(prediction), normals, valid(normals)),
        finish=metrics.finish,
        draw=draw_normal_maps,
        predict=lambda prediction: _unit(decode(prediction)),
        best=("normals_mean", "min"),
    )
    return make_dense(config, known, task, head, evaluation.every, evaluation.examples, evaluation.pictures)


def _unit(normals: Normals) -> Normals:
    return normals / jnp.maximum(jnp.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
