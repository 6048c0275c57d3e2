"""Numbers of completion against closed forms, for stand-in models whose predictions are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import records
from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.evaluation.pairs import evaluate
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.patches import patchify
from tests.datasets import make_pair, write_dataset

SEEN = {"size": (40, 48), "crop": (32, 40)}
SIZES = Sizes(16, 1, 2, 16, 1, 2, patch_size=8, mask_ratio=0.5, norm_pix_loss=False)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write(folder, pairs):
    # Without correspondences, which are measured elsewhere.
    nothing = np.full(16, -1, np.int16)
    write_dataset(folder, [dataclasses.replace(pair, correspondence=nothing) for pair in pairs])
    return all_examples(open_mixture(str(folder), "data"))


@pytest.fixture
def examples(tmp_path):
    return write(tmp_path / "d", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(7)])


class Standin(nnx.Module):
    """Predicts what a function makes of the true patches of view 1, and of view 2."""

    def __init__(self, predict, views=2, **sizes):
        self.predict, self.views = nnx.static(predict), views
        self.sizes = dataclasses.replace(SIZES, **sizes)
        self.encoder = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    def __call__(self, *arguments):
        *views, visible = arguments
        return self.predict(patchify(views[0], 8), *views, visible)


def measured(model, examples, **options):
    return evaluate(model, examples, **(SEEN | options))


def normalised(pairs, view):
    """The middle 32×40 of views of 40×48, by plain NumPy."""
    import cv2

    images = [
        cv2.resize(records.decode_image(getattr(pair, view)), (48, 40), interpolation=cv2.INTER_AREA) for pair in pairs
    ]
    return ((np.stack(images)[:, 4:36, 4:44] / 255 - MEAN) / STD).astype(np.float32)


def in_order(count):
    """Pairs as the two shards of the dataset have them."""
    return [make_pair(seed, scene=f"scene {seed % 3}") for seed in [*range(0, count, 2), *range(1, count, 2)]]


@pytest.mark.parametrize("batch", [3, 64])
def test_the_error_is_the_mean_over_pairs_whatever_the_batch(examples, batch):
    """A prediction that is off by the first pixel of each image: its square is the error, on any mask."""
    model = Standin(lambda true, view1, view2, visible: true + view1[:, :1, :1, 0])
    found, absent = measured(model, examples, batch=batch)
    marks = normalised(in_order(7), "view1")[:, 0, 0, 0]
    assert found["error"] == pytest.approx(np.square(marks).mean(), rel=1e-5)
    assert found["ratio"] == 1
    assert found["pairs"] == 7
    assert all(isinstance(value, float) for value in found.values())
    assert set(absent) == {"correspondence"}


def test_each_second_view_is_the_one_that_is_named(examples):
    """A prediction of the mark of the view that the model got for a second; all on the same masks."""
    seen = []

    def predict(true, view1, view2, visible):
        jax.debug.callback(lambda *x: seen.append([np.asarray(y) for y in x]), view1, view2, visible)
        return true + view2.mean((1, 2, 3))[:, None, None]

    found, _ = measured(Standin(predict), examples)
    jax.effects_barrier()
    firsts, seconds, masks = (np.stack(each) for each in zip(*seen, strict=True))
    view1, view2 = normalised(in_order(7), "view1"), normalised(in_order(7), "view2")
    black = np.broadcast_to(-MEAN / STD, view2.shape)
    marks = {"error": view2.mean((1, 2, 3)), "error_black_view": black.mean((1, 2, 3))}
    for name, mark in marks.items():
        assert found[name] == pytest.approx(np.square(mark).mean(), rel=1e-4), name
    for first, mask in zip(firsts, masks, strict=True):
        np.testing.assert_allclose(first, view1, atol=1e-5)
        np.testing.assert_array_equal(mask, masks[0])
    (wrong,) = [each for each in seconds if np.abs(each - view2).max() > 0.1 and np.abs(each - black).max() > 0.1]
    assert found["error_wrong_view"] == pytest.approx(np.square(wrong.mean((1, 2, 3))).mean(), rel=1e-4)
    assert found["ratio"] == pytest.approx(found["error"] / found["error_wrong_view"])
    scenes = [pair.scene for pair in in_order(7)]
    for row, view in enumerate(wrong):
        (source,) = [place for place, other in enumerate(view2) if np.abs(view - other).max() < 1e-5]
        assert scenes[source] != scenes[row]


def test_psnr_is_that_of_the_hidden_pixels(examples):
    """Half grey everywhere, against plain NumPy on the masks that were seen."""
    masks = []

    def predict(true, view1, visible):
        jax.debug.callback(lambda x: masks.append(np.asarray(x)), visible)
        return jnp.zeros_like(true)  # ImageNet's mean colour

    found, _ = measured(Standin(predict, views=1), examples)
    jax.effects_barrier()
    colours = np.asarray(patchify(normalised(in_order(7), "view1") * STD + MEAN, 8)).reshape(7, 20, 64, 3)
    expected = []
    for image, visible in zip(colours, masks[0], strict=True):
        hidden = np.delete(image, visible, axis=0)
        expected.append(-10 * np.log10(np.square(hidden - MEAN).mean()))
    assert found["psnr"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert set(found) == {"error", "psnr", "pairs"}


def test_a_model_of_normalised_patches_is_lent_their_mean_and_spread(examples):
    """Predicting 0 then means one value for each patch, the mean over its pixels and channels."""
    masks = []

    def predict(true, view1, visible):
        jax.debug.callback(lambda x: masks.append(np.asarray(x)), visible)
        return jnp.zeros_like(true)

    found, _ = measured(Standin(predict, views=1, norm_pix_loss=True), examples)
    jax.effects_barrier()
    patches = np.asarray(patchify(normalised(in_order(7), "view1"), 8))
    expected = []
    for image, visible in zip(patches, masks[0], strict=True):
        hidden = np.delete(image, visible, axis=0)
        completed = np.clip(hidden.mean(-1)[:, None, None] * STD + MEAN, 0, 1)
        true = hidden.reshape(len(hidden), 64, 3) * STD + MEAN
        expected.append(-10 * np.log10(np.square(completed - true).mean()))
    assert found["psnr"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_perfect_completion_is_finite(examples):
    found, _ = measured(Standin(lambda true, *_: true, views=1), examples)
    assert found["error"] == 0
    assert found["psnr"] == pytest.approx(100)


def test_one_scene_has_no_wrong_view(tmp_path, examples):
    one = write(tmp_path / "one", [make_pair(seed, scene="kitchen") for seed in range(3)])
    model = Standin(lambda true, view1, view2, visible: true + 1)
    found, absent = measured(model, one)
    assert "kitchen" in absent["error_wrong_view, ratio"]
    assert not {"error_wrong_view", "ratio"} & set(found)
    assert found["error"] == pytest.approx(1, rel=1e-5)
    assert found["error_black_view"] == pytest.approx(1, rel=1e-5)
    found, absent = measured(model, one, others=examples)
    assert found["ratio"] == 1
    assert "error_wrong_view, ratio" not in absent
