"""What must hold of the models whatever their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.models import completion
from mimic_jax.models.kinds import abstract, build
from mimic_jax.models.sizes import Sizes, published
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.patches import patchify, unpatchify


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
        completion.masked_mse(
            jnp.asarray(prediction), completion.normalize_patches(jnp.asarray(patches)), jnp.asarray(mask)
        ),
        expected,
        rtol=1e-5,
    )


SIZES = {"encoder_width": 32, "encoder_depth": 2, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 2}
SIZES |= {"decoder_heads": 2, "patch_size": 8}
VARIANTS = [
    ("croco", {"positions": "cosine"}),
    ("croco", {"positions": "rope100"}),
    ("croco", {"positions": "cosine", "class_token": True}),
    ("croco", {"positions": "learned", "position_grid": (3, 5)}),
    ("mae", {"positions": "cosine", "class_token": True}),
    ("mae", {"positions": "rope100"}),
]
each_variant = pytest.mark.parametrize(("kind", "changes"), VARIANTS)


def tiny(kind: str = "croco", **changes) -> nnx.Module:
    return build(kind, Sizes(**SIZES | changes), nnx.Rngs(0))


@each_variant
def test_hidden_patches_never_reach_the_prediction(kind, changes):
    """On rectangular images, whose rows and columns must not be taken for one another."""
    model = tiny(kind, **changes)
    key1, key2, key3 = jax.random.split(jax.random.key(0), 3)
    view1, *others = jax.random.normal(key1, (model.views, 2, 32, 48, 3))
    visible = completion.random_visible(key2, view1, model.sizes)
    noise = jax.random.normal(key3, completion.target(view1, model.sizes).shape)
    mask = completion.mask(view1, visible, model.sizes)[..., None]
    changed = view1 + unpatchify(jnp.where(mask, noise, 0), 8, 4, 6)
    assert not np.allclose(changed, view1)
    prediction = model(view1, *others, visible)
    np.testing.assert_array_equal(prediction, model(changed, *others, visible))
    # … and everything that may reach it does.
    seen = view1 + unpatchify(jnp.where(mask, 0, noise), 8, 4, 6)
    assert not np.allclose(prediction, model(seen, *others, visible))
    for other in others:
        assert not np.allclose(prediction, model(view1, other[::-1], visible))


@each_variant
def test_a_model_knows_where_patches_are(kind, changes):
    """Without positions, a transformer gives the same features wherever a patch lies."""
    model = tiny(kind, **changes)
    image = jax.random.normal(jax.random.key(0), (1, 24, 40, 3))
    patches = patchify(image, 8)
    order = np.random.default_rng(0).permutation(15)
    shuffled = unpatchify(patches[:, order], 8, 3, 5)
    features, moved = (model.encode(each)[:, model.sizes.class_token :] for each in (image, shuffled))
    assert not np.allclose(features[:, order], moved, atol=1e-3)


@each_variant
def test_layers_end_with_the_features(kind, changes):
    model = tiny(kind, **changes)
    views = jax.random.normal(jax.random.key(0), (2, 2, 24, 40, 3))
    layers = model.encoder.layers(views[0])
    np.testing.assert_allclose(layers[-1], model.encode(views[0]), rtol=1e-5, atol=1e-5)
    assert len(layers) == 2
    # The first layer is the features of a model that has one layer, but for the final norm.
    if kind == "croco":
        decoded = model.decoder_layers(*views)
        expected = model.decode(model.encode(views[0]), model.encode(views[1]), (3, 5))
        np.testing.assert_allclose(decoded[-1], expected, rtol=1e-5, atol=1e-5)
        assert not np.allclose(decoded[0], decoded[1])


@each_variant
def test_all_visible_is_the_same_in_any_case(kind, changes):
    model = tiny(kind, **changes)
    images = jax.random.normal(jax.random.key(0), (2, 24, 40, 3))
    everything = jnp.broadcast_to(jnp.arange(15), (2, 15))
    np.testing.assert_allclose(model.encode(images, everything), model.encode(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [changes for kind, changes in VARIANTS if kind == "croco"])
def test_attention_is_what_the_decoder_attends_by(changes):
    """Rows of the map times the values must give what cross-attention gives, which the fixtures vouch for."""
    model = tiny(**changes)
    views = jax.random.normal(jax.random.key(0), (2, 2, 24, 40, 3))
    maps = model.attention(*views)
    assert maps.shape == (2, 2, 15, 15)
    first = int(model.sizes.class_token)
    tokens, context, *positions = model._inputs_of(*views)
    graph, stacked = nnx.split(model.decoder)
    for layer in range(2):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
        looking = tokens + block.attention(block.norm1(tokens), positions[0])
        queries, keys = block.norm2(looking), block.norm_context(context)
        weights = block.cross_attention.weights(queries, keys, *positions)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, block.cross_attention.value(keys))
        given = block.cross_attention(queries, keys, *positions)
        np.testing.assert_allclose(block.cross_attention.out(mixed), given, atol=1e-5)
        np.testing.assert_allclose(maps[layer], weights[..., first:, first:].mean(1), atol=1e-6)
        tokens = block(tokens, context, *positions)


def test_a_model_on_another_grid_sees_positions_between_those_it_knows():
    images = jax.random.normal(jax.random.key(0), (1, 64, 32, 3))
    known, plain = (tiny("vit", positions="cosine", **grid) for grid in ({"position_grid": (4, 4)}, {}))
    np.testing.assert_array_equal(known.encode(images[:, :32]), plain.encode(images[:, :32]))
    assert not np.allclose(known.encode(images), plain.encode(images), atol=1e-3)


def test_published_sizes_have_the_published_counts():
    """The papers' encoders: ViT-S 22 M parameters, ViT-B 86 M, ViT-L 303 M, ViT-H 631 M."""
    for encoder, millions in [("vit_s", 21.6), ("vit_b", 85.6), ("vit_l", 303.1), ("vit_h14", 630.4)]:
        sizes = Sizes(**published(encoder))
        width, depth, pixels = sizes.encoder_width, sizes.encoder_depth, 3 * sizes.patch_size**2
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract("vit", sizes))))
        assert count == depth * (12 * width**2 + 13 * width) + 2 * width + pixels * width + width
        assert round(count / 1e6, 1) == millions
    assert Sizes(**published("vit_b", "small")).visible(196) == 20
    assert Sizes(**published("vit_b", "small", positions="cosine", class_token=True)).visible(196) == 19


def test_initial_weights_are_xavier_uniform_over_flattened_fans():
    model = tiny(encoder_width=256, decoder_width=128)
    for kernel, fans in [
        (model.encoder.patch_embed.kernel, (192, 256)),
        (model.encoder.blocks.attention.qkv.kernel, (256, 3 * 256)),
        (model.encoder.blocks.attention.out.kernel, (256, 256)),
        (model.decoder.cross_attention.key.kernel, (128, 128)),
        (model.prediction_head.kernel, (128, 192)),
    ]:
        bound = np.sqrt(6 / sum(fans))
        values = np.asarray(kernel.get_value())
        assert 0.999 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.01)
    # Layers of a stack start out different.
    qkv = model.encoder.blocks.attention.qkv.kernel.get_value()
    assert not np.allclose(qkv[0], qkv[1])
    np.testing.assert_allclose(model.mask_token.get_value().std(), 0.02, rtol=0.3)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="encoder_width 30"):
        tiny(encoder_width=30)
    with pytest.raises(ValueError, match="'absolute'"):
        tiny(positions="absolute")
    with pytest.raises(ValueError, match="need a position_grid"):
        tiny(positions="learned")
    with pytest.raises(ValueError, match="class_token"):
        tiny(class_token=True)
    with pytest.raises(ValueError, match="mask_ratio"):
        tiny(mask_ratio=1.0)


def test_bfloat16_computes_nearly_the_same_with_float32_parameters():
    sizes = tiny().sizes
    views = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 3))
    losses = []
    for dtype in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        model = build("croco", sizes, nnx.Rngs(0), Compute(dtype=dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype("float32")}
        assert model.encode(views[0]).dtype == dtype
        losses.append(
            completion.loss(model, tuple(views), completion.random_visible(jax.random.key(1), views[0], sizes))
        )
        assert losses[-1].dtype == jnp.float32
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, rtol=0.02)
