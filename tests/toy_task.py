"""A small task on images with masks, and its config, for tests of what trains any task.

Rows weigh as many pixels as they have valid ones: from 12 to 252, and 0 in every eighth row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from configs import common
from mimic_jax.data.source import Source
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import DEFAULT, Compute
from mimic_jax.nn.layers import linear
from mimic_jax.task import Evaluation, Opened, Rows, Task, Terms

PIXELS = 256
WIDTH = 16
ROWS = 8
LENGTH = 24


def example(index: int) -> dict[str, np.ndarray]:
    """An image, a target that depends on it, and which pixels are valid."""
    rng = np.random.default_rng(index)
    image = rng.normal(size=PIXELS).astype(np.float32)
    valid = 0 if index % 8 == 7 else int(rng.integers(12, 253))
    mask = np.zeros(PIXELS, np.bool_)
    mask[rng.choice(PIXELS, valid, replace=False)] = True
    target = np.where(mask, np.roll(image, 1) / 2 + 1, np.nan).astype(np.float32)
    return {"image": image, "target": target, "valid": mask}


def read(index: int, row: dict[str, np.ndarray]) -> None:
    """`Source.read` of the examples."""
    for name, values in example(index).items():
        row[name][...] = values


def describe(index: int) -> str:
    """`Source.describe` of the examples."""
    return f"toy {index}"


def source(length: int = LENGTH, unit: str = "images") -> Source:
    """Examples 0 … length − 1."""
    spec = {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in example(0).items()}
    return Source((length,), None, spec, read, describe, f"toy {length}", [{"name": "toy", unit: length}], unit)


class Net(nnx.Module):
    """tanh(x·W + b)·V + c: one of our layers, sharded by its axes, and one of Flax's, which names none."""

    def __init__(self, rngs: nnx.Rngs, compute: Compute = DEFAULT):
        axes = {"axes_in": ("pixels",), "axes_out": ("embed",)}
        self.encoder = linear(PIXELS, WIDTH, **axes, rngs=rngs, compute=compute)
        self.head = nnx.Linear(WIDTH, PIXELS, rngs=rngs)

    def __call__(self, images: Float[Array, "rows pixels"]) -> Float[Array, "rows pixels"]:
        return self.head(jnp.tanh(self.encoder(images)))


def prepare(key: jax.Array, batch: dict[str, Array]) -> Rows:
    """The batch as it is, with a key for each row."""
    return batch | {"keys": jax.random.split(key, len(batch["image"]))}


def loss(model: nnx.Module, rows: Rows) -> Terms:
    """Mean squared error over a row's valid pixels, which are its weight."""
    valid = rows["valid"]
    error = jnp.where(valid, model(rows["image"]) - jnp.where(valid, rows["target"], 0), 0)
    count = valid.sum(-1)
    some = jnp.maximum(count, 1)
    return Terms(jnp.square(error).sum(-1) / some, count.astype(jnp.float32), {"l1": jnp.abs(error).sum(-1) / some})


def make_toy(
    config: ConfigDict,
    known: Sizes | None = None,
    *,
    net: Callable[[nnx.Rngs, Compute], nnx.Module] = Net,
    evaluations: Callable[[nnx.Module], dict[str, Evaluation]] = lambda model: {},
    **changes: Any,
) -> Task:
    """The task of a config.

    Args:
      net: makes the model.
      evaluations: of a model.
      changes: of the task's fields.
    """
    task = Task(
        name="toy",
        unit="images",
        batch={
            name: jax.ShapeDtypeStruct((config.batch_size, *leaf.shape), leaf.dtype)
            for name, leaf in source().spec.items()
        },
        model=net,
        prepare=prepare,
        loss=loss,
        open=lambda: Opened(source(), lambda model, layout: evaluations(model)),
        evaluations=lambda dataset, batch: lambda model, layout: evaluations(model),
        takes=lambda kind: None,
    )
    return dataclasses.replace(task, **changes)


def toy_config(**changes: Any) -> ConfigDict:
    """A config of the task; fields inside sections are named as in optimizer__b1."""
    config = common.experiment("toy", steps=4, batch_size=ROWS, compute_dtype="float32")
    config.model, config.data, config.evals = ConfigDict(), ConfigDict(), ConfigDict()
    config.optimizer = common.adamw(learning_rate=0.01, warmup_steps=0, total_steps=100)
    config.run = common.running(log_every=1, checkpoint_every=100, threads=1)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def batch_of(indices: list[int] | range) -> dict[str, np.ndarray]:
    """A batch of examples."""
    rows = [example(index) for index in indices]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
