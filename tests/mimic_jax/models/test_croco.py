"""CroCo against the published PyTorch model's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.interop.torch_names import from_torch
from mimic_jax.models import presets
from mimic_jax.models.croco import CroCo, CroCoSizes
from mimic_jax.models.losses import masked_mse, normalize_patches
from mimic_jax.nn.patches import patchify, unpatchify


def relative(found, expected) -> float:
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


@pytest.fixture(params=["cosine", "rope100"])
def published(request, parity):
    fixture = np.load(parity / f"croco_{request.param}.npz")
    given = {key.removeprefix("in/"): fixture[key] for key in fixture if key.startswith("in/")}
    sizes = CroCoSizes(
        encoder_width=int(given["enc_embed_dim"]),
        encoder_depth=int(given["enc_depth"]),
        encoder_heads=int(given["enc_num_heads"]),
        decoder_width=int(given["dec_embed_dim"]),
        decoder_depth=int(given["dec_depth"]),
        decoder_heads=int(given["dec_num_heads"]),
        patch_size=int(given["patch_size"]),
        positions=request.param,
        mask_ratio=float(given["mask_ratio"]),
    )
    model = CroCo(sizes, rngs=nnx.Rngs(0))
    tensors = {key.removeprefix("param/"): fixture[key] for key in fixture if key.startswith("param/")}
    graph, _ = nnx.split(model)
    parameters = from_torch(model, tensors)
    view1, view2 = (jnp.asarray(given[name].transpose(0, 2, 3, 1)) for name in ("img1", "img2"))
    visible = jnp.asarray(np.stack([np.flatnonzero(~mask) for mask in given["mask"]]))
    return fixture, graph, parameters, view1, view2, visible


def test_outputs_match_the_published_model(published):
    fixture, graph, parameters, view1, view2, visible = published
    model = nnx.merge(graph, parameters)
    features1, features2 = model.encode(view1, visible), model.encode(view2)
    decoded = model.decode(features1, features2, visible, (4, 4))
    found = {
        "visible_features": features1,
        "view2_features": features2,
        "decoder_features": decoded,
        "prediction": model(view1, view2, visible),
        "target": patchify(view1, 16),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, fixture[f"out/{name}"], atol=1e-4, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(model.mask(view1, visible), fixture["in/mask"])


def test_losses_match_the_published_model(published):
    fixture, graph, parameters, view1, view2, visible = published
    model = nnx.merge(graph, parameters)
    assert relative(model.loss(view1, view2, visible).mean(), fixture["out/loss"]) < 1e-5
    model.sizes = CroCoSizes(**{**vars(model.sizes), "norm_pix_loss": False})
    assert relative(model.loss(view1, view2, visible).mean(), fixture["out/loss_unnormalized"]) < 1e-5


def test_every_gradient_matches_the_published_model(published):
    fixture, graph, parameters, view1, view2, visible = published
    loss = lambda parameters: nnx.merge(graph, parameters).loss(view1, view2, visible).mean()  # noqa: E731
    found = dict(jax.tree.leaves_with_path(jax.grad(loss)(parameters)))
    tensors = {key.removeprefix("grad/"): fixture[key] for key in fixture if key.startswith("grad/")}
    expected = dict(jax.tree.leaves_with_path(from_torch(nnx.merge(graph, parameters), tensors)))
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        scale = np.linalg.norm(gradient)
        # The key biases' gradient is zero but for rounding: softmax does not feel a shift of all scores.
        error = np.linalg.norm(found[path] - gradient)
        assert error < 1e-3 * scale + 1e-7, (path, error, scale)


def test_loss_against_numpy():
    rng = np.random.default_rng(0)
    prediction, patches = rng.normal(size=(2, 3, 5, 12)).astype(np.float32)
    mask = rng.uniform(size=(3, 5)) < 0.6
    expected = []
    for image in range(3):
        errors = []
        for patch in np.flatnonzero(mask[image]):
            x = patches[image, patch].astype(np.float64)
            target = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - 1) + 1e-6)
            errors.append(((prediction[image, patch] - target) ** 2).mean())
        expected.append(np.mean(errors))
    np.testing.assert_allclose(
        masked_mse(jnp.asarray(prediction), normalize_patches(jnp.asarray(patches)), jnp.asarray(mask)),
        expected,
        rtol=1e-5,
    )


def tiny(**changes) -> CroCo:
    sizes = {"encoder_width": 32, "encoder_depth": 2, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 2}
    return CroCo(CroCoSizes(**sizes | {"decoder_heads": 2, "patch_size": 8} | changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("positions", ["cosine", "rope100"])
def test_hidden_patches_never_reach_the_prediction(positions):
    model = tiny(positions=positions)
    key1, key2, key3 = jax.random.split(jax.random.key(0), 3)
    view1, view2 = jax.random.normal(key1, (2, 2, 32, 48, 3))
    visible = model.random_visible(key2, view1)
    noise = jax.random.normal(key3, model.target(view1).shape)
    hidden = jnp.where(model.mask(view1, visible)[..., None], noise, 0)
    changed = view1 + unpatchify(hidden, 8, 4, 6)
    assert not np.allclose(changed, view1)
    np.testing.assert_array_equal(model(view1, view2, visible), model(changed, view2, visible))
    # … and everything that may reach it does.
    assert not np.allclose(model(view1, view2, visible), model(view1, view2[::-1], visible))


def test_published_sizes_have_the_published_counts():
    """The papers' encoders: ViT-B has 86 M parameters, ViT-L 303 M; 20 of 196 patches stay visible."""
    for encoder, millions in [("vit_b", 85.6), ("vit_l", 303.1)]:
        sizes = presets.croco(encoder, "small", "rope100")
        model = nnx.eval_shape(lambda sizes=sizes: CroCo(sizes, rngs=nnx.Rngs(0)))
        width, depth = sizes.encoder_width, sizes.encoder_depth
        count = sum(
            parameter.get_value().size
            for path, parameter in nnx.to_flat_state(nnx.state(model))
            if path[0] in ("encoder", "encoder_norm", "patch_embed")
        )
        assert count == depth * (12 * width**2 + 13 * width) + 2 * width + 768 * width + width
        assert round(count / 1e6, 1) == millions
    assert sizes.visible(196) == 20


def test_initial_weights_are_xavier_uniform_over_flattened_fans():
    model = tiny(encoder_width=256, decoder_width=128)
    for kernel, fans in [
        (model.patch_embed.kernel, (192, 256)),
        (model.encoder.attention.qkv.kernel, (256, 3 * 256)),
        (model.encoder.attention.out.kernel, (256, 256)),
        (model.decoder.cross_attention.key.kernel, (128, 128)),
        (model.prediction_head.kernel, (128, 192)),
    ]:
        bound = np.sqrt(6 / sum(fans))
        values = np.asarray(kernel.get_value())
        assert 0.999 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.01)
    # Layers of a stack start out different.
    qkv = model.encoder.attention.qkv.kernel.get_value()
    assert not np.allclose(qkv[0], qkv[1])
    np.testing.assert_allclose(model.mask_token.get_value().std(), 0.02, rtol=0.3)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="encoder_width 30"):
        tiny(encoder_width=30)
    with pytest.raises(ValueError, match="'learned'"):
        tiny(positions="learned")
    with pytest.raises(ValueError, match="mask_ratio"):
        tiny(mask_ratio=1.0)


def test_bfloat16_computes_nearly_the_same_with_float32_parameters():
    sizes = tiny().sizes
    views = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 3))
    losses = []
    for dtype in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        model = CroCo(sizes, rngs=nnx.Rngs(0), dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype("float32")}
        assert model.encode(views[0]).dtype == dtype
        losses.append(model.loss(*views, model.random_visible(jax.random.key(1), views[0])))
        assert losses[-1].dtype == jnp.float32
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, rtol=0.02)
