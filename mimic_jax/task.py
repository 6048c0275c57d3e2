"""What is trained, apart from how: the interface that tasks and training share.

Everything that is random, and everything that must not depend on accumulation, devices or hosts, happens once on the
whole batch, in `Task.prepare`. The differentiated part, `Task.loss`, is a function of rows: it returns the loss and
the weight of each row. A step minimises Σ loss · weight / Σ weight over the global batch.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from mimic_jax.data.source import Source, Spec
from mimic_jax.models.description import Description
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layout import Layout

Batch = dict[str, Array]
Rows = PyTree
# The values of a model's parameters and variables, nested by module, as `nnx.merge` takes them.
Values = PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terms:
    """The loss of a batch, row by row.

    loss: finite, for rows of weight 0 too.
    weight: of a row in the mean, at least 0: valid pixels, boxes, 0 for padding. No gradient flows through it.
    logged: more numbers for the metrics, averaged with the same weights.
    """

    loss: Float[Array, " rows"]
    weight: Float[Array, " rows"]
    logged: dict[str, Float[Array, " rows"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Results:
    """What an evaluation measured. pictures: RGB uint8 [height, width, 3], by name."""

    numbers: dict[str, float]
    pictures: dict[str, UInt8[np.ndarray, "_ _ 3"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A measurement at steps of a run.

    every: steps between two; the last step is always measured.
    run: measures a model's values. Every process of a run calls it.
    best: the number that the best checkpoint is chosen by, and "min" or "max"; None: none is chosen.
    """

    every: int
    run: Callable[[Values], Results]
    best: tuple[str, str] | None = None


# Builds the evaluations of a model, by name: given the model, whose values are not kept, and the layout of its arrays.
Evaluations = Callable[[nnx.Module, Layout | None], dict[str, Evaluation]]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A task's data. notes: lines about the data for the person who starts the run."""

    train: Source
    evaluations: Evaluations
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, from a config and without data.

    name: for people, "completion (croco)". unit: what a batch counts, in the plural: "pairs", "images".
    batch: shapes and types of a global batch as hosts deliver it.
    model: makes the model with fresh parameters.
    prepare: draws everything random on the whole batch; the result's leaves have rows first.
    loss: the terms of rows; the model is in training mode.
    open: reads the data. Planning never calls it.
    evaluations: on a named dataset, in batches of a number of examples, whatever their intervals; None where
      launch.evaluate does not apply.
    takes: the top-level modules that weights of a given kind may initialise; None: weights of that kind do not fit.
      The encoder by default.
    backbone: the part of the model that is exported and encoded with; None where there is none.
    examples_per_record: examples that a record counts for in an epoch.
    flops: of the model in closed form per step, by part; empty where there is no closed form.
    augmentation_flops: of `prepare`, per step.
    layers: for layer-wise learning-rate decay, the layer of the parameters whose path matches a pattern, first match
      wins; a stack of blocks counts on from its first block's.
    predict: labels by name that a model in evaluation mode gives normalised images; None where there are none.
    """

    name: str
    unit: str
    batch: Spec
    model: Callable[[nnx.Rngs, Compute], nnx.Module]
    prepare: Callable[[PRNGKeyArray, Batch], Rows]
    loss: Callable[[nnx.Module, Rows], Terms]
    open: Callable[[], Opened]
    evaluations: Callable[[str, int], Evaluations] | None = None
    takes: Callable[[str], tuple[str, ...] | None] = lambda kind: ("encoder",)
    backbone: Description | None = None
    examples_per_record: int = 1
    flops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    augmentation_flops: int = 0
    layers: tuple[tuple[str, int], ...] = ()
    predict: Callable[[nnx.Module, Array], dict[str, Array]] | None = None
