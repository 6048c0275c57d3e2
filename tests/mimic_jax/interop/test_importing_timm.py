"""timm's own vision transformers, small and of random weights, against what is imported of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.interop.importing import import_file
from tests.mimic_jax.interop.timm_here import import_timm

torch = pytest.importorskip("torch")

# One function for all tests, so that a model of the same sizes is compiled once.
encode = nnx.jit(lambda model, images: model.encode(images))


@pytest.fixture(scope="module")
def timm():
    return import_timm()


def vit(timm, **options):
    """A small timm ViT of random weights, norms and biases included."""
    small = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
    model = timm.models.vision_transformer.VisionTransformer(**small | {"dynamic_img_size": True} | options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


TOKEN = {"class token": {}, "no token": {"class_token": False, "global_pool": "avg", "fc_norm": False}}


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("token", TOKEN)
def test_timm_computes_the_same_features(token, kind, timm, save):
    model = vit(timm, **TOKEN[token])
    weights, report = import_file(save(model.state_dict(), kind), encoder_heads=3)
    assert weights.kind == "vit"
    assert weights.sizes.positions == "learned"
    assert weights.sizes.class_token == (token != "no token")
    assert report.left_over == {"the classifier": ("head.weight", "head.bias")} or kind == "safetensors"
    assert any("GELU" in line for line in report.assumed)
    assert any("square grid, 4 × 4" in line for line in report.assumed)
    ours = weights.model()
    # At its own size, and at one both smaller and larger, for which timm resamples its table.
    for height, width in ((64, 64), (48, 112)):
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model.forward_features(images).numpy()
        found = encode(ours, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4, err_msg=f"{height}×{width}")


@pytest.mark.parametrize("token", ["class token", "no token"])
def test_fixed_positions_in_timm_are_recognised(token, timm, save, parity):
    # MAE's encoder-only release: the fixture's table, which published code made.
    rows = torch.from_numpy(np.load(parity / "mae.npz")["param/decoder_pos_embed"])  # 48 wide, 4 × 4
    model = vit(timm, **TOKEN[token])
    state = model.state_dict()
    state["pos_embed"] = rows if token == "class token" else rows[:, 1:]
    model.load_state_dict(state)
    path = save(state)
    weights, _ = import_file(path, encoder_heads=3)
    assert (weights.sizes.positions, weights.sizes.position_grid) == ("cosine", (4, 4))
    learned, _ = import_file(path, encoder_heads=3, positions="learned")
    assert learned.sizes.positions == "learned"
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.forward_features(images).numpy()
    for each in (weights, learned):
        found = encode(each.model(), jnp.asarray(images.numpy().transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"init_values": 0.1}, r"blocks\.0\.ls1\.gamma has no place"),
        ({"qk_norm": True}, r"blocks\.0\.attn\.q_norm\.weight has no place"),
        ({"reg_tokens": 2}, r"reg_token has no place"),
        ({"pre_norm": True}, r"norm_pre\.weight has no place"),
        ({"no_embed_class": True}, r"pos_embed has shape \(1, 16, 48\)"),
        ({"qkv_bias": False}, r"blocks\.0\.attn\.qkv\.bias is missing \(and 2 more\)"),
        ({"mlp_ratio": 2}, r"blocks\.0\.mlp\.fc1\.weight has shape \(96, 48\)|blocks\.0\.mlp\.fc1\.bias has shape"),
        ({"class_token": False, "global_pool": "avg"}, r"it has fc_norm"),
        ({"img_size": (64, 96)}, r"pos_embed has shape \(1, 25, 48\), which is not 48 numbers .* on a square grid"),
        ({"pos_embed": "none"}, r"--positions=rope100"),
        ({"in_chans": 4}, r"patch_embed\.proj\.weight has shape \(48, 4, 16, 16\)"),
        ({"patch_size": (16, 32)}, r"patch_embed\.proj\.weight has shape \(48, 3, 16, 32\)"),
    ],
)
def test_what_ours_would_not_compute_is_refused_by_name(options, named, timm, save):
    path = save(vit(timm, **options).state_dict())
    with pytest.raises(InputError, match=named) as caught:
        import_file(path, encoder_heads=3)
    assert str(caught.value).startswith(f"{path}: ")
