"""The task on the page "Add a task" is trained as it is printed there."""

import dataclasses
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import checkpoints, records
from mimic_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mimic_jax.interop.load import load
from mimic_jax.metrics_file import read_metrics
from mimic_jax.nn.compute import DEFAULT
from mimic_jax.records import dense
from mimic_jax.training.loop import train
from mimic_jax.training.run import check_initial
from tests.datasets import make_image, write_dataset

PAGE = Path(__file__).parents[1] / "docs" / "add_a_task.md"
STEPS = 30


def labelled(seed: int, scene: str) -> records.LabelledImage:
    """An image with depth in a number of its columns that differs between images; in none of image 3."""
    depth = np.random.default_rng(seed).uniform(2, 9, (48, 64))
    depth[:, 0 if seed == 3 else 4 + 10 * (seed % 6) :] = 0
    png, unit = dense.encode_depth(depth)
    return dataclasses.replace(make_image(seed, ("depth",), scene), depth=png, metres_per_unit=unit)


@pytest.fixture(scope="module")
def task():
    """The page's module."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("distance")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def images():
    return {
        name: [labelled(seed, name) for seed in seeds]
        for name, seeds in (("train", range(12)), ("validation", range(20, 25)))
    }


@pytest.fixture(scope="module")
def trained(task, images, tmp_path_factory):
    """The page's config, made smaller; and its workdir after a run."""
    folder = tmp_path_factory.mktemp("distance")
    for name, examples in images.items():
        write_dataset(folder / name, examples, schema=records.images.schema(("depth",)))
    config = task.get_config()
    config.steps, config.batch_size = STEPS, 6
    config.model.update(encoder_width=16, encoder_depth=1)
    config.data.update(train=str(folder / "train"), validation=str(folder / "validation"))
    with config.data.ignore_type():
        config.data.update(size=(48, 64), crop=(32, 48))
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2, total_steps=STEPS)
    config.evals.every = STEPS
    config.run.update(log_every=1, threads=2)
    train(config, folder / "run", task.make)
    return config, folder / "run"


def test_the_loss_falls(trained):
    _, workdir = trained
    losses = [line["loss"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_the_metric_is_the_mean_over_known_pixels(task, trained, images):
    """By NumPy, image by image, from the checkpoint."""
    config, workdir = trained
    model = task.make(config).model(nnx.Rngs(0), DEFAULT)
    values = checkpoints.read_params(workdir / "checkpoints" / str(STEPS))
    model = nnx.merge(nnx.split(model)[0], jax.tree.map(jnp.asarray, values))
    errors, weights = [], []
    for record in images["validation"]:
        depth = dense.decode_depth(record.depth, record.metres_per_unit)[8:40, 8:56]
        image = (records.decode_image(record.image)[8:40, 8:56] / 255 - np.array(IMAGENET_MEAN)) / np.array(
            IMAGENET_STD
        )
        predicted = float(model(jnp.asarray(image[None], jnp.float32))[0])
        known = depth[depth > 0]
        if not known.size:  # image 24: the crop has no known pixel
            continue
        errors.append(abs(predicted - np.log(known).mean()))
        weights.append(known.size)
    (measured,) = [line["evaluation"] for line in read_metrics(workdir / "metrics.jsonl") if "evaluation" in line]
    assert measured["distance_error"] == pytest.approx(np.average(errors, weights=weights), rel=1e-4)
    assert abs(measured["distance_error"] / np.mean(errors) - 1) > 1e-2


def test_the_encoder_starts_from_weights(task, trained):
    config, workdir = trained
    assert check_initial(load(workdir), task.make(config)) == ("encoder",)
