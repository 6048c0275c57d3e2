"""Dense models against the published PyTorch models' own numbers, and by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.interop import dense_names
from mimic_jax.models.dense import Dense, default_hooks
from mimic_jax.models.heads.dpt import DPTSizes
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.losses import berhu, berhu_threshold, masked_l1
from mimic_jax.nn.rngs import make_rngs

FIXTURES = ("downstream_dpt_depth", "downstream_dpt_normal", "downstream_monocular_dpt")


def tensors_of(fixture, group: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(group): fixture[key] for key in fixture if key.startswith(group)}


def last(array: np.ndarray) -> jax.Array:
    """Channels last."""
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def mean(values_and_counts) -> jax.Array:
    values, counts = values_and_counts
    return (values * counts).sum() / counts.sum()


def describe(fixture, name):
    """Sizes, options and names of the fixture's model, its images, and its loss as a function of the prediction."""
    given, tensors = tensors_of(fixture, "in/"), tensors_of(fixture, "param/")
    stages, features = tuple(map(int, given["layer_dims"])), int(given["feature_dim"])
    if name == "downstream_monocular_dpt":
        fields = ("embed_dim", "depth", "num_heads")
        sizes = Sizes(
            *(int(given[f"enc_{field}"]) for field in fields),
            patch_size=int(given["patch_size"]),
            positions="cosine",
        )
        names, images = dense_names.CROCO, given["img1"]
        options = {"normalise_last": True, "dpt": DPTSizes(stages, features, int(given["last_dim"]))}
        loss = lambda prediction: jnp.square(prediction).mean()  # noqa: E731
    else:
        task = name.rsplit("_", 1)[1]
        names, images = dense_names.multimae(task), given["image"]
        embedding = tensors["input_adapters.rgb.proj.weight"]
        sizes = Sizes(
            embedding.shape[0],
            1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("encoder.")),
            int(given["num_heads"]),
            patch_size=embedding.shape[-1],
            positions="learned",
            class_token=True,
            position_grid=tensors["input_adapters.rgb.pos_emb"].shape[2:],
        )
        tail = len(tensors[f"{names.head}head.2.bias"])
        options = {"normalise_last": False, "dpt": DPTSizes(stages, features, tail)}
        target, valid = last(given["target"]), last(given["mask_valid"])[..., 0]
        if task == "depth":
            loss = lambda prediction: mean(  # noqa: E731
                berhu(prediction, target, valid, berhu_threshold(prediction, target, valid).max())
            )
        else:
            loss = lambda prediction: mean(masked_l1(prediction, target, valid))  # noqa: E731
    options["hooks"] = tuple(map(int, given["hooks"]))
    channels = fixture["out/prediction"].shape[1]
    model = lambda: Dense(sizes, channels, rngs=make_rngs(0), **options)  # noqa: E731
    return nnx.eval_shape(model), names, tensors, last(images), loss


@pytest.fixture(params=FIXTURES)
def published(request, parity):
    fixture = np.load(parity / f"{request.param}.npz")
    return fixture, *describe(fixture, request.param)


def test_predictions_losses_and_gradients_match_the_published_model(published):
    fixture, abstract, names, tensors, images, loss = published
    graph, _ = nnx.split(abstract)
    params = jax.tree.map(jnp.asarray, dense_names.from_published(abstract, tensors, names))

    def measured(params):
        prediction = nnx.merge(graph, params)(images)
        return loss(prediction), prediction

    (value, prediction), gradients = jax.jit(jax.value_and_grad(measured, has_aux=True))(params)
    expected = fixture["out/prediction"].transpose(0, 2, 3, 1)
    assert prediction.dtype == jnp.float32
    np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(value, fixture["out/loss"], rtol=1e-4)
    found = dense_names.to_published(nnx.merge(graph, jax.tree.map(jnp.asarray, gradients)), names)
    compared = tensors_of(fixture, "grad/")
    assert compared.keys() <= found.keys()
    # The published table is fixed; blocks after the last hook get no gradient.
    for name in found.keys() - compared.keys() - {names.encoder.encoder_positions}:
        assert not found[name].any(), name
    for name, gradient in compared.items():
        tolerance = 1e-3 * np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=tolerance, err_msg=name)


def test_names_lead_there_and_back_bit_for_bit(published):
    _, abstract, names, tensors, _, _ = published
    graph, _ = nnx.split(abstract)
    params = dense_names.from_published(abstract, tensors, names)
    found = dense_names.to_published(nnx.merge(graph, params), names)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)
    # Only what has no counterpart is not read: the unused unit, second names, fixed tables and CroCo's decoder.
    left_over = [name for name in tensors if name not in found and name.startswith(names.head)]
    unread = ("act_postprocess.", "scratch.layer_rn.", "scratch.refinenet4.resConfUnit1.")
    assert all(name.removeprefix(names.head).startswith(unread) for name in left_over)
    kernel = next(name for name in found if name.startswith(names.head))
    with pytest.raises(InputError, match="is missing"):
        dense_names.from_published(abstract, {key: tensors[key] for key in tensors if key != kernel}, names)
    with pytest.raises(InputError, match="has shape"):
        dense_names.from_published(abstract, tensors | {kernel: tensors[kernel][..., :0]}, names)


SIZES = Sizes(16, 3, 2, patch_size=4, positions="cosine", class_token=True)


def dense(**options):
    return Dense(SIZES, 2, rngs=make_rngs(0), dpt=DPTSizes((4, 4, 4, 4), 4, 4), **options)


def test_hooks_are_the_published_ones():
    assert default_hooks("dpt", 12) == (2, 5, 8, 11)
    assert default_hooks("dpt", 24) == (5, 11, 17, 23)
    assert default_hooks("dpt", 2) == (0, 0, 0, 1)
    assert default_hooks("linear", 12) == (11,)


def test_a_linear_head_is_a_product_for_each_patch():
    model = dense(head="linear")
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    features = np.asarray(model.encoder(images)[:, 1:]).reshape(2, 2, 3, 16)
    kernel = jax.random.normal(jax.random.key(1), (16, 4 * 4 * 2))
    model.head.project.kernel.set_value(kernel)
    found = np.asarray(model(images))
    assert found.shape == (2, 8, 12, 2)
    for row, column in [(0, 0), (1, 2)]:
        expected = (features[1, row, column] @ np.asarray(kernel)).reshape(4, 4, 2)
        patch = found[1, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_allclose(patch, expected, atol=1e-4)


def test_the_last_block_is_normalised_where_asked_and_no_other():
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    outputs = dense().encoder.block_outputs(images)[:, :, 1:].reshape(3, 1, 2, 2, 16)
    normed = dense().encoder(images)[:, 1:].reshape(1, 2, 2, 16)
    maps = dense(hooks=(0, 1, 2, 2), normalise_last=True).token_maps(images)
    for found, expected in zip(maps, [outputs[0], outputs[1], normed, normed], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.array_equal(dense(normalise_last=False).token_maps(images)[3], outputs[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mlp"}, "head='mlp' must be one of dpt, linear"),
        ({"hooks": (0, 1, 2)}, "must be 4 of the encoder's blocks 0 … 2"),
        ({"hooks": (0, 1, 2, 3)}, "must be 4"),
        ({"head": "linear", "hooks": (0, 1)}, "must be 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dense(**options)


def test_products_in_bfloat16_give_float32_near_the_same():
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    for head in ("dpt", "linear"):
        exact = dense(head=head)(images)
        rounded = dense(head=head, compute=Compute(dtype=jnp.dtype(jnp.bfloat16)))(images)
        assert rounded.dtype == jnp.float32
        assert 0 < np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()


def test_drop_path_needs_keys_and_is_each_images_own():
    images = jnp.repeat(jax.random.normal(jax.random.key(0), (1, 8, 8, 3)), 4, axis=0)
    model = dense(head="linear", drop_path=0.5)
    np.testing.assert_array_equal(model(images), dense(head="linear")(images))
    dropped = np.asarray(model(images, jax.random.split(jax.random.key(1), 4)))
    assert len(np.unique(dropped.reshape(4, -1), axis=0)) > 1
