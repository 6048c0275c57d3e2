"""What evaluations of depth and normals report is plain NumPy's over the images, whatever the batch."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.nn.compute import DEFAULT
from mimic_jax.nn.rngs import make_rngs
from mimic_jax.tasks import make_task
from tests.datasets import make_image
from tests.labelled import small_config, write_labelled
from tests.mimic_jax.tasks.stand_in import Given, PerPixel, values_of

COUNT, SIZE, CROP = 7, 40, 32
MIDDLE = slice((SIZE - CROP) // 2, (SIZE + CROP) // 2)
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_labelled(tmp_path_factory.mktemp("data") / "rooms", COUNT))


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def middle(label):
    """At the centres of 40 × 40 pixels, and of these the middle 32 × 32."""
    rows, columns = ((2 * np.arange(SIZE) + 1) * length // (2 * SIZE) for length in label.shape[:2])
    return label[rows][:, columns][MIDDLE, MIDDLE]


def examples(indices=range(COUNT)):
    """Normalised images, depths and normals as a model and its judge see them, float64."""
    images, depths, normals = [], [], []
    for seed in indices:
        record = make_image(seed, ("depth", "normals"))
        image = cv2.resize(decoded(record.image)[..., ::-1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        images.append((image[MIDDLE, MIDDLE] / 255 - MEAN) / DEVIATION)
        depths.append(middle(decoded(record.depth)) * np.float64(record.metres_per_unit))
        stored = middle(decoded(record.normals)[..., ::-1]).astype(np.float64)
        vectors = np.where(stored.any(-1, keepdims=True), stored / 127.5 - 1, 0)
        normals.append(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9))
    return np.array(images), np.array(depths), np.array(normals)


def of_depth(predicted, truth):
    predicted, log = np.maximum(predicted, 1e-3), np.log(np.maximum(predicted, 1e-3)) - np.log(truth)
    ratio = np.maximum(predicted / truth, truth / predicted)
    return {
        "absrel": np.mean(np.abs(predicted - truth) / truth),
        "sqrel": np.mean((predicted - truth) ** 2 / truth),
        "rmse": np.sqrt(np.mean((predicted - truth) ** 2)),
        "rmse_log": np.sqrt(np.mean(log**2)),
        "log10": np.mean(np.abs(log)) / np.log(10),
        "silog": 100 * np.sqrt(np.mean(log**2) - np.mean(log) ** 2),
        **{f"delta{power}": np.mean(ratio < 1.25**power) for power in (1, 2, 3)},
    }


def of_normals(encoded, truth):
    vectors = 2 * encoded - 1
    cosine = (vectors * truth).sum(-1) / np.linalg.norm(vectors, axis=-1)
    degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return {
        "mean": degrees.mean(),
        "median": np.median(degrees),
        "rmse": np.sqrt((degrees**2).mean()),
        **{f"within_{limit:g}": 100 * np.mean(degrees < limit) for limit in (5, 7.5, 11.25, 22.5, 30)},
        "l1_x1000": 1000 * np.abs(encoded - (truth + 1) / 2).mean(),
    }


def expected_of(metrics, task, predictions, truths, valid):
    each = [
        metrics(*(array[mask] for array in (*pair,))) for *pair, mask in zip(predictions, truths, valid, strict=True)
    ]
    mean = {f"{task}_{name}": np.mean([numbers[name] for numbers in each]) for name in each[0]}
    pooled = metrics(predictions[valid], truths[valid])
    return mean | {f"{task}_pooled_{name}": value for name, value in pooled.items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # A pooled median is off by one bin of its histogram at most.
        tolerance = {"atol": 0.02} if name.endswith("pooled_median") else {"rtol": 2e-4}
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


DEPTH = PerPixel(np.array([[0.3], [-0.2], [0.1]], np.float32), np.array([1.1], np.float32))
NORMALS = PerPixel(
    np.array([[0.2, -0.1, 0.05], [0.1, 0.15, -0.1], [-0.1, 0.1, 0.05]], np.float32),
    np.array([0.5, 0.45, 0.2], np.float32),
)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_depth_is_measured_as_by_numpy_whatever_the_batch(folder, batch):
    images, depths, _ = examples()
    task = make_task(small_config("depth", evals__depth__pictures=0))
    evaluation = task.evaluations(folder, batch)(DEPTH, None)["depth"]
    # A prediction that depends on the image, and the same constant everywhere: 2 m.
    constant = PerPixel(np.zeros((3, 1), np.float32), np.array([np.log(2)], np.float32))
    for model in (DEPTH, constant):
        weights, bias = (np.asarray(each.get_value(), np.float64) for each in (model.weights, model.bias))
        predictions = np.exp(images @ weights + bias)[..., 0]
        expected = expected_of(of_depth, "depth", predictions, depths, depths > 0)
        assert_close(evaluation.run(values_of(model)).numbers, expected)
    known = depths[depths > 0]
    np.testing.assert_allclose(expected["depth_pooled_absrel"], np.mean(np.abs(2 - known) / known))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_normals_are_measured_as_by_numpy_whatever_the_batch(folder, batch):
    images, _, normals = examples()
    task = make_task(small_config("normals", evals__normals__pictures=0))
    evaluation = task.evaluations(folder, batch)(NORMALS, None)["normals"]
    # The second model predicts the wall that is seen head-on everywhere.
    constant = PerPixel(np.zeros((3, 3), np.float32), np.array([0.5, 0.5, 0], np.float32))
    for model in (NORMALS, constant):
        weights, bias = (np.asarray(each.get_value(), np.float64) for each in (model.weights, model.bias))
        encoded = images @ weights + bias
        expected = expected_of(of_normals, "normals", encoded, normals, normals.any(-1))
        assert_close(evaluation.run(values_of(model)).numbers, expected)
    facing = normals[normals.any(-1)]
    np.testing.assert_allclose(expected["normals_pooled_mean"], np.degrees(np.arccos(-facing[:, 2])).mean())


def test_depth_in_other_scales_with_a_cap_over_some_of_the_images(folder):
    chosen = (0, 3, 6)  # evenly spread, with the first and the last
    images, depths, _ = examples(chosen)
    options = {"depth__scale": "multimae", "evals__depth__cap": (1.0, 6.0), "evals__depth__examples": 3}
    task = make_task(small_config("depth", evals__depth__pictures=0, **options))
    model = PerPixel(np.array([[3.0], [-2.0], [1.0]], np.float32), np.array([20.0], np.float32))
    output = images @ [3.0, -2.0, 1.0] + 20
    metres = np.clip((output * 777.5723 + 2070.7764) / 6553.6, 1, 6)
    expected = expected_of(of_depth, "depth", metres, depths, (depths >= 1) & (depths <= 6))
    found = task.evaluations(folder, 2)(model, None)["depth"].run(values_of(model))
    assert_close(found.numbers, expected)
    assert found.pictures == {}


def test_the_picture_shows_as_many_images_as_wanted(folder):
    for task, model in (("depth", DEPTH), ("normals", NORMALS)):
        heights = []
        for count in (1, 3):
            made = make_task(small_config(task, **{f"evals__{task}__pictures": count, f"evals__{task}__examples": 1}))
            picture = made.evaluations(folder, 2)(model, None)[task].run(values_of(model)).pictures[task]
            assert picture.dtype == np.uint8
            heights.append(picture.shape[0])
        assert heights[1] > 2 * heights[0]


def test_predictions_are_metres_and_unit_normals():
    rng = np.random.default_rng(0)
    images = jnp.zeros((2, 8, 8, 3))
    output = rng.uniform(-1, 2, (2, 8, 8, 1)).astype(np.float32)
    meanings = {
        "metres": output,
        "log": np.exp(output),
        "multimae": (output * np.float64(777.5723) + 2070.7764) / 6553.6,
    }
    for scale, metres in meanings.items():
        found = make_task(small_config("depth", depth__scale=scale)).predict(Given(output), images)
        assert found.keys() == {"depth"}
        np.testing.assert_allclose(found["depth"], metres[..., 0], rtol=1e-5)
    encoded = rng.uniform(0, 1, (2, 8, 8, 3)).astype(np.float32)
    found = make_task(small_config("normals")).predict(Given(encoded), images)
    vectors = 2 * encoded.astype(np.float64) - 1
    expected = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["normals"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("depth", {"depth__loss": "huber"}, r"config\.depth\.loss='huber' must be 'berhu'"),
        ("depth", {"depth__head": "dpt", "data__crop": 24}, r"even numbers of patches.*3×3"),
        ("depth", {"data__crop": 36}, r"config\.data\.crop=36 must be a multiple of config\.model\.patch_size=8"),
        ("normals", {"normals__hooks": (7,)}, r"hooks=\(7,\) must be 1 of the encoder's blocks 0 … 1"),
        ("normals", {"normals__dpt_features": 7}, r"config\.normals.*even"),
        ("depth", {"model__encoder_width": None}, r"config\.model\.encoder_width is not set: .*--config\.init=WEIGHTS"),
    ],
)
def test_wrong_fields_get_one_line(task, changes, message):
    def make():
        made = make_task(small_config(task, **changes))
        nnx.eval_shape(lambda: made.model(make_rngs(0), DEFAULT))

    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_unknown_task_gets_one_line():
    config = small_config("depth")
    config.task = "dpeth"
    with pytest.raises(InputError, match=r"config\.task='dpeth' must be 'completion' or 'depth' or 'normals'"):
        make_task(config)
