"""Features by path, against the models that they come from and the published numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import backbone
from mimic_jax.command import InputError
from mimic_jax.interop.names import CROCO, from_published
from mimic_jax.interop.weights import Weights, save_folder
from mimic_jax.models.kinds import abstract, build
from mimic_jax.models.sizes import Sizes

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"encoder_width": 32, "encoder_depth": 2, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 3}
SIZES |= {"decoder_heads": 2, "patch_size": 8}


def weights(kind: str = "croco", **changes) -> Weights:
    sizes = Sizes(**SIZES | changes)
    return Weights(kind, sizes, nnx.to_pure_dict(nnx.state(build(kind, sizes, nnx.Rngs(0)))), {})


def test_features_are_the_published_models(parity, tmp_path):
    """The fixture's images are normalised already: that is undone here."""
    fixture = np.load(parity / "croco_cosine.npz")
    sizes = Sizes(64, 3, 4, 48, 2, 4, positions="cosine")
    tensors = {key.removeprefix("param/"): fixture[key] for key in fixture if key.startswith("param/")}
    save_folder(Weights("croco", sizes, from_published(abstract("croco", sizes), tensors, CROCO), {}), tmp_path / "w")
    images = (fixture["in/img2"].transpose(0, 2, 3, 1) * STD + MEAN).astype(np.float32)
    features = backbone.load(tmp_path / "w").encode(images)
    np.testing.assert_allclose(features.reshape(2, 16, 64), fixture["out/view2_features"], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("croco", {}),
        ("croco", {"positions": "cosine", "class_token": True}),
        ("mae", {"positions": "cosine"}),
        ("vit", {}),
    ],
)
def test_grids_of_any_size_and_batch(kind, changes):
    model = backbone.Backbone(weights(kind, **changes))
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 40, 3), np.uint8)
    features = model.encode(images)
    assert features.shape == (5, 3, 5, 32)
    # Row-major, the class token left out, bytes as colours in [0, 1] over ImageNet's mean and deviation.
    plain = model.weights.model()
    tokens = plain.encode(jnp.asarray((images / 255 - MEAN) / STD))
    first = int(model.sizes.class_token)
    np.testing.assert_allclose(features, tokens[:, first:].reshape(5, 3, 5, 32), atol=1e-5)
    np.testing.assert_allclose(model.encode((images / 255).astype(np.float32)), features, atol=1e-5)
    # What stands beside an image in the batch, or fills it up, does not matter.
    for batch in (1, 2, 3):
        np.testing.assert_allclose(model.encode(images[:batch]), features[:batch], atol=1e-5)
    layers = model.encode_layers(images)
    assert layers.shape == (2, 5, 3, 5, 32)
    np.testing.assert_allclose(layers[-1], features, atol=1e-5)


def test_the_decoder_looks_from_the_first_view_at_the_second():
    model = backbone.Backbone(weights())
    view1, view2 = np.random.default_rng(0).integers(0, 256, (2, 2, 24, 40, 3), np.uint8)
    decoded = model.decode(view1, view2)
    assert decoded.shape == (2, 3, 5, 16)
    layers = model.decode_layers(view1, view2)
    assert layers.shape == (3, 2, 3, 5, 16)
    np.testing.assert_allclose(layers[-1], decoded, atol=1e-5)
    plain = model.weights.model()
    normalised = [jnp.asarray((view / 255 - MEAN) / STD) for view in (view1, view2)]
    expected = plain.decode(*(plain.encode(view) for view in normalised), (3, 5))
    np.testing.assert_allclose(decoded, expected.reshape(2, 3, 5, 16), atol=1e-5)
    assert not np.allclose(decoded, model.decode(view2, view1), atol=1e-3)


def test_weights_without_a_prediction_head_decode_all_the_same():
    model = backbone.Backbone(weights(predicts=False))
    views = np.zeros((2, 1, 16, 16, 3), np.uint8)
    assert model.decode(*views).shape == (1, 2, 2, 16)


def test_what_would_only_look_bad_is_refused():
    model = backbone.Backbone(weights())
    image = np.zeros((1, 16, 16, 3), np.uint8)
    for value in (255.0, -1.5):
        with pytest.raises(ValueError, match="neither 0 to 255 nor normalised"):
            model.encode(np.full((1, 16, 16, 3), value, np.float32))
    with pytest.raises(ValueError, match="int32"):
        model.encode(image.astype(np.int32))
    with pytest.raises(ValueError, match="18×16 pixels do not divide"):
        model.encode(np.zeros((1, 18, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="differ in size"):
        model.decode(image, np.zeros((1, 16, 24, 3), np.uint8))
    for wrong in (image[0], image[:0], np.zeros((1, 16, 16, 4), np.uint8)):
        with pytest.raises((ValueError, TypeError), match=r"."):
            model.encode(wrong)
    with pytest.raises(ValueError, match="'mae' has no decoder for two views"):
        backbone.Backbone(weights("mae")).decode(image, image)
    with pytest.raises(InputError, match="no such file or folder"):
        backbone.load("nowhere")


def test_a_batch_size_compiles_once_for_those_it_is_filled_up_to():
    model = backbone.Backbone(weights())
    images = np.zeros((8, 16, 16, 3), np.uint8)
    model.encode(images)
    compiled = model._encode._cache_size()
    for batch in (5, 6, 7):
        model.encode(images[:batch])
    assert model._encode._cache_size() == compiled
