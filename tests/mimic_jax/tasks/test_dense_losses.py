"""The losses of depth and normals over a batch are plain NumPy's, and labels move with images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.tasks import make_task
from mimic_jax.training import config as configs
from mimic_jax.training.setup import set_up
from tests.labelled import small_config
from tests.mimic_jax.tasks.stand_in import Given

ROWS, SIDE = 5, 8
SCALES = {
    "metres": lambda depth: depth,
    "log": np.log,
    "multimae": lambda depth: (depth * 6553.6 - 2070.7764) / 777.5723,
}


def batch_loss(task, prediction, label):
    """Σ loss · weight / Σ weight, in float64."""
    rows = {"image": jnp.zeros((*label.shape[:3], 3)), task.name.split()[0]: jnp.asarray(label, jnp.float32)}
    terms = task.loss(Given(np.asarray(prediction, np.float32)), rows)
    loss, weight = (np.asarray(each, np.float64) for each in (terms.loss, terms.weight))
    assert np.isfinite(loss).all()
    return (loss * weight).sum() / weight.sum(), weight


@pytest.fixture
def depths():
    """Depths with a fifth unknown; of the second image all, of the third all but one."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.4, 9, (ROWS, SIDE, SIDE)) * (rng.uniform(size=(ROWS, SIDE, SIDE)) > 0.2)
    depth[1], depth[2] = 0, 0
    depth[2, 3, 4] = 2.5
    return depth


def reverse_huber(error):
    threshold = 0.2 * error.max()
    return np.where(error < threshold, error, (error**2 + threshold**2) / (2 * threshold))


def depth_loss(name, scale, output, depth):
    """The mean over all valid pixels; of berHu and SILog what belongs to an image is that of its own pixels."""
    per_pixel = []
    for predicted, truth in zip(output[..., 0], depth, strict=True):
        valid = truth > 0
        if not valid.any():
            continue
        if name == "silog":
            inverse = {"metres": predicted, "log": np.exp(predicted), "multimae": (777.5723 * predicted + 2070.7764)}
            metres = inverse[scale] / (6553.6 if scale == "multimae" else 1)
            ratio = np.log(np.maximum(metres, 1e-3)[valid]) - np.log(truth[valid])
            per_pixel.append(np.full(valid.sum(), np.sqrt((ratio**2).mean() - 0.85 * ratio.mean() ** 2)))
        else:
            error = np.abs(predicted[valid] - SCALES[scale](truth[valid]))
            per_pixel.append({"l1": error, "mse": error**2}[name] if name != "berhu" else reverse_huber(error))
    return np.concatenate(per_pixel).mean()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["berhu", "l1", "mse", "silog"])
def test_loss_of_depth(depths, name, scale):
    task = make_task(small_config("depth", depth__loss=name, depth__scale=scale))
    rng = np.random.default_rng(1)
    output = SCALES[scale](rng.uniform(0.4, 9, depths.shape))[..., None]
    found, weight = batch_loss(task, output, depths)
    np.testing.assert_allclose(found, depth_loss(name, scale, output, depths), rtol=2e-5)
    np.testing.assert_array_equal(weight, (depths > 0).sum((1, 2)))
    if name == "silog" and scale == "metres":  # below a millimetre a depth counts as one
        output[0, :4] = -3
        found, _ = batch_loss(task, output, depths)
        np.testing.assert_allclose(found, depth_loss(name, scale, output, depths), rtol=2e-5)


@pytest.mark.parametrize("name", ["l1", "cosine"])
def test_loss_of_normals(depths, name):
    rng = np.random.default_rng(2)
    known = depths > 0
    normals = rng.normal(size=(*depths.shape, 3))
    normals *= known[..., None] / np.linalg.norm(normals, axis=-1, keepdims=True)
    output = rng.uniform(-0.2, 1.2, normals.shape)
    found, weight = batch_loss(make_task(small_config("normals", normals__loss=name)), output, normals)
    vectors = 2 * output - 1
    cosine = (vectors * normals).sum(-1) / np.linalg.norm(vectors, axis=-1)
    expected = 1 - cosine[known] if name == "cosine" else np.abs(output - (normals + 1) / 2)[known]
    np.testing.assert_allclose(found, expected.mean(), rtol=2e-5)
    assert (weight > 0).tolist() == [True, False, True, True, True]
    np.testing.assert_allclose(weight / weight.sum(), known.sum((1, 2)) / known.sum())


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_a_batch_without_any_valid_pixel_has_weight_nothing(task):
    label = np.zeros((2, SIDE, SIDE, 3)[: 4 if task == "normals" else 3])
    channels = 3 if task == "normals" else 1
    model, rows = Given(jnp.full((2, SIDE, SIDE, channels), 0.3)), {"image": jnp.zeros((2, SIDE, SIDE, 3))}
    for name in ("l1", "cosine" if task == "normals" else "silog"):
        made = make_task(small_config(task, **{f"{task}__loss": name}))
        terms = made.loss(model, rows | {task: jnp.asarray(label, jnp.float32)})
        np.testing.assert_array_equal(terms.weight, 0)
        np.testing.assert_array_equal(terms.loss, 0)


def random_batch(task, seed=0):
    """Bytes, and labels of which some are unknown; of the last image all."""
    rng = np.random.default_rng(seed)
    image = jnp.asarray(rng.integers(0, 256, task.batch["image"].shape, np.uint8))
    ((name, leaf),) = ((name, leaf) for name, leaf in task.batch.items() if name in ("depth", "normals"))
    known = rng.uniform(size=leaf.shape[:3]) > 0.3
    known[-1] = False
    if name == "depth":
        return {"image": image, name: jnp.asarray(rng.uniform(0.5, 9, leaf.shape) * known, jnp.float32)}
    normals = rng.normal(size=leaf.shape)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return {"image": image, name: jnp.asarray(normals * known[..., None], jnp.float32)}


def test_a_flip_mirrors_the_x_of_normals():
    options = {"data__size": 16, "data__crop": 16, "data__jitter": 0.0, "normals__drop_path": 0.0}
    batch = random_batch(make_task(small_config("normals", **options)))
    plain, flipped = (
        make_task(small_config("normals", data__flip=flip, **options)).prepare(jax.random.key(0), batch)
        for flip in (0.0, 1.0)
    )
    np.testing.assert_array_equal(plain["normals"], batch["normals"])
    np.testing.assert_array_equal(flipped["normals"], batch["normals"][:, :, ::-1] * np.array([-1, 1, 1]))
    assert np.abs(np.asarray(flipped["normals"])[..., 0]).max() > 0.5
    np.testing.assert_array_equal(np.asarray(flipped["image"]), np.asarray(plain["image"])[:, :, ::-1])
    levels = np.asarray(plain["image"]) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    np.testing.assert_allclose(levels * 255, batch["image"], atol=1e-3)


@pytest.mark.parametrize(
    ("task", "options"),
    [("depth", {"depth__loss": "berhu"}), ("normals", {"normals__loss": "cosine", "normals__drop_path": 0.5})],
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(task, options):
    """Parts have different numbers of valid pixels, one image has none, and drop path draws for the whole batch."""
    states, losses = [], []
    for parts in (1, 4):
        config = small_config(
            task, batch_size=8, run__accumulation_steps=parts, data__size=24, data__crop=16, **options
        )
        made = make_task(config)
        setup = set_up(made, configs.read(config), configs.Lengths(10, 1, 10), jax.devices()[:1])
        state, metrics = setup.step(setup.init(jax.random.key(0)), random_batch(made), jax.random.key(1))
        states.append(state)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    # After one step Adam's first moments are a fixed share of the gradient.
    whole, parts = (
        {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(state.opt_state)
            if ".mu" in jax.tree_util.keystr(path)
        }
        for state in states
    )
    largest = max(np.abs(leaf).max() for leaf in whole.values())
    assert largest > 1e-4
    for name, leaf in whole.items():
        np.testing.assert_allclose(parts[name], leaf, rtol=1e-5, atol=1e-6 * largest, err_msg=name)
