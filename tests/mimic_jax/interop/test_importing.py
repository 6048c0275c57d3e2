"""Published files become models: the published outputs come out, and whatever does not fit is named."""

import argparse
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.interop.importing import Group, import_file
from mimic_jax.interop.load import load
from mimic_jax.models.sizes import Sizes

torch = pytest.importorskip("torch")

KWARGS = {
    "img_size": 64,
    "enc_embed_dim": 64,
    "enc_depth": 3,
    "enc_num_heads": 4,
    "dec_embed_dim": 48,
    "dec_depth": 2,
    "dec_num_heads": 4,
}
HEADS = {"encoder_heads": 4, "decoder_heads": 4}


def dust3r_string(encoder=(64, 3, 4), decoder=(48, 2, 4)):
    sizes = [
        f"{part}_{size}={value}"
        for part, values in (("enc", encoder), ("dec", decoder))
        for size, value in zip(("embed_dim", "depth", "num_heads"), values, strict=True)
    ]
    return (
        "AsymmetricCroCo3DStereo(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), "
        "head_type='dpt', output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
        + ", ".join(sizes)
        + ")"
    )


@pytest.fixture(scope="module")
def fixtures(parity):
    """The published models' numbers by name: fixture, and its state dict."""
    names = ("croco_cosine", "croco_rope100", "mimic_croco_cls", "mae")
    loaded = {name: np.load(parity / f"{name}.npz") for name in names}
    return {
        name: (file, {key[6:]: torch.from_numpy(file[key]) for key in file if key.startswith("param/")})
        for name, file in loaded.items()
    }


def pixels(fixture, name):
    return jnp.asarray(fixture[f"in/{name}"].transpose(0, 2, 3, 1))


def visible(fixture):
    if "in/noise" in fixture:
        count = int(16 * (1 - float(fixture["in/mask_ratio"])))
        return jnp.asarray(np.sort(np.argsort(fixture["in/noise"], 1)[:, :count]))
    return jnp.asarray(np.stack([np.flatnonzero(~mask) for mask in fixture["in/mask"]]))


# One function each for all tests, so that a model of the same sizes is compiled once.
predict = nnx.jit(lambda model, *inputs: model(*inputs))
encode = nnx.jit(lambda model, images: model.encode(images))


def check_prediction(weights, fixture):
    model = weights.model()
    views = [pixels(fixture, "img1"), pixels(fixture, "img2")][: model.views]
    found = predict(model, *views, visible(fixture))
    np.testing.assert_allclose(found, fixture["out/prediction"], atol=1e-4, rtol=1e-4)


CALL = "CroCoNet({}pos_embed='{}')".format("".join(f"{name}={value!r}, " for name, value in KWARGS.items()), "{}")
WAYS = {
    "croco_kwargs": ("croco_rope100", {"croco_kwargs": KWARGS | {"pos_embed": "RoPE100", "mask_ratio": 0.75}}, {}),
    "args.model": ("croco_rope100", {"args": argparse.Namespace(model=CALL.format("RoPE100"))}, {}),
    "cosine": ("croco_cosine", {"croco_kwargs": KWARGS | {"pos_embed": "cosine"}}, {}),
    "v1": ("croco_cosine", {}, HEADS),
    "flags": ("croco_rope100", {}, HEADS | {"positions": "rope100"}),
    "mimic": ("mimic_croco_cls", {"args": argparse.Namespace(model="mimic_b16", norm_pix_loss=0)}, HEADS),
    "mae": ("mae", {"args": argparse.Namespace(model="mae_vit_large_patch16", mask_ratio=0.75)}, HEADS),
}
# Another way to the same numbers as one whose outputs are compared with the published ones.
SAME = {"args.model": "croco_kwargs", "cosine": "v1", "flags": "croco_kwargs"}


@pytest.mark.parametrize("way", WAYS)
def test_the_published_outputs_come_out(way, fixtures, save):
    name, others, flags = WAYS[way]
    fixture, state = fixtures[name]
    weights, report = import_file(save(state, **others, optimizer={}), **flags)
    if way in SAME:
        _, others, flags = WAYS[SAME[way]]
        checked, _ = import_file(save(state, **others), **flags)
        jax.tree.map(np.testing.assert_array_equal, weights.params, checked.params)
    else:
        check_prediction(weights, fixture)
    assert report.parameters == sum(v.numel() for k, v in state.items() if "pos_embed" not in k)
    assert report.left_over == {"other entries of the file": ("optimizer",)}
    assert weights.about.keys() == {"origin", "format", "sha256"}
    expected = Sizes(
        encoder_width=64,
        encoder_depth=3,
        encoder_heads=4,
        decoder_width=48,
        decoder_depth=2,
        decoder_heads=4,
        positions="rope100" if "rope" in name else "cosine",
        class_token=way in ("mimic", "mae"),
        position_grid=None if "rope" in name else (4, 4),
        mask_ratio=0.75 if way in ("croco_kwargs", "mae") else 0.9,
        norm_pix_loss=way != "mimic",
    )
    assert report.sizes == weights.sizes == expected
    assumed = " ".join(report.assumed)
    assert ("mask_ratio 0.9" in assumed) == (way not in ("croco_kwargs", "mae"))
    assert ("norm_pix_loss True" in assumed) == (way != "mimic")


@pytest.mark.parametrize("name", ["croco_cosine", "croco_rope100", "mimic_croco_cls", "mae"])
def test_safetensors_and_ddp_give_the_same(name, fixtures, save):
    _, state = fixtures[name]
    positions = "rope100" if "rope" in name else "cosine"
    weights, _ = import_file(save(state, "safetensors"), **HEADS, positions=positions)
    same, _ = import_file(save({f"module.{key}": value for key, value in state.items()}), **HEADS, positions=positions)
    jax.tree.map(np.testing.assert_array_equal, weights.params, same.params)


def dust3r(state):
    kept = {k: v for k, v in state.items() if not k.startswith(("prediction_head", "mask_token"))}
    second = {k.replace("dec_blocks.", "dec_blocks2."): v + 1 for k, v in kept.items() if k.startswith("dec_blocks.")}
    return kept | second | {f"downstream_head{view}.dpt.head.weight": torch.ones(3) for view in (1, 2)}


def test_dust3r_that_kept_the_prediction_head_is_a_croco_and_its_second_decoder_gets_a_word(fixtures, save):
    _, whole = fixtures["croco_rope100"]
    second = {name.replace("dec_blocks", "dec_blocks2"): each for name, each in whole.items() if "dec_blocks" in name}
    _, report = import_file(save({**whole, **second}, args=argparse.Namespace(model=dust3r_string())))
    assert (report.format, report.sizes.predicts) == ("croco", True)
    assert {"DUSt3R's decoder of the second view; CroCo has one decoder": len(second)}.items() <= {
        reason: len(names) for reason, names in report.left_over.items()
    }.items()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value, fixtures, save):
    _, state = fixtures["mae"]
    state = {name: each.clone() for name, each in state.items()}
    state["blocks.1.norm1.weight"][3] = value
    with pytest.raises(
        InputError, match=r"weights\.pth: tensor blocks\.1\.norm1\.weight has values that are not finite"
    ):
        import_file(save(state), **HEADS)


def test_a_prefix_of_all_names_is_named(fixtures, save):
    _, state = fixtures["mae"]
    with pytest.raises(InputError, match=r"all begin with 'backbone\.': save them without it"):
        import_file(save({f"backbone.{name}": each for name, each in state.items()}), **HEADS)


@pytest.mark.parametrize("mask_token", [True, False])
def test_dust3r_gives_croco_without_its_prediction(mask_token, fixtures, save):
    fixture, whole = fixtures["croco_rope100"]
    state = dust3r(whole) | ({"mask_token": whole["mask_token"]} if mask_token else {})
    weights, report = import_file(save(state, args=argparse.Namespace(model=dust3r_string())))
    assert (report.format, weights.kind, weights.sizes.predicts) == ("dust3r", "croco", False)
    counts = {reason: len(names) for reason, names in report.left_over.items()}
    second = sum(name.startswith("dec_blocks2.") for name in state)
    assert sorted(counts.values()) == sorted([second, 2] + [1] * mask_token)
    assert any("predicts no pixels" in line for line in report.missing)
    assert sum(group.count for group in report.read) == len(state) - sum(counts.values())
    features = encode(weights.model(), pixels(fixture, "img2"))
    np.testing.assert_allclose(features, fixture["out/view2_features"], atol=1e-4, rtol=1e-4)
    # All the rest is as in the whole CroCo, whose decoder is compared with published outputs above.
    full, _ = import_file(save(whole, croco_kwargs=KWARGS | {"pos_embed": "RoPE100"}))
    assert full.params.keys() - weights.params.keys() == {"mask_token", "prediction_head"}
    jax.tree.map(np.testing.assert_array_equal, weights.params, {name: full.params[name] for name in weights.params})


def test_groups_of_layers_and_what_differs_in_the_last_bits(fixtures, save):
    _, state = fixtures["mae"]
    nudged = state["pos_embed"] + 3e-8 * (torch.arange(64) % 2)
    _, report = import_file(save(state | {"pos_embed": nudged, "extra.weight": torch.ones(2)}), **HEADS)
    assert Group("blocks.0–2.attn.qkv.weight", (192, 64), 3) in report.read
    assert Group("decoder_pred.bias", (768,), 1) in report.read
    assert report.left_over == {"no part of the model": ("extra.weight",)}
    assert [line for line in report.assumed if "last bits" in line and line.startswith("pos_embed")]


def test_half_and_double_precision(fixtures, save):
    _, state = fixtures["mae"]
    weights, report = import_file(save({k: v if "pos" in k else v.bfloat16() for k, v in state.items()}), **HEADS)
    np.testing.assert_array_equal(weights.params["decoder_norm"]["bias"], state["decoder_norm.bias"].bfloat16().float())
    assert not any("rounded" in line for line in report.assumed)
    weights, report = import_file(save({k: v.double() for k, v in state.items()}), **HEADS)
    np.testing.assert_array_equal(weights.params["decoder_norm"]["bias"], state["decoder_norm.bias"])
    assert any("rounded" in line for line in report.assumed)


def test_heads_follow_from_published_widths(save):
    state = croco_state(width=384, decoder=512)
    weights, report = import_file(save(state), positions="rope100")
    assert (weights.sizes.encoder_heads, weights.sizes.decoder_heads) == (6, 16)
    assert "encoder_heads 6, as published for width 384" in report.assumed
    # Arguments that set a width leave the heads to the published code's default, which nobody sees here.
    with pytest.raises(InputError, match=r"how many heads the decoder has .*--decoder_heads=N"):
        import_file(save(state, croco_kwargs={"dec_embed_dim": 512, "pos_embed": "RoPE100"}))


def croco_state(width, decoder, depths=(1, 1)):
    """Zeros under CroCo's names."""
    shapes = {"mask_token": (1, 1, decoder), "patch_embed.proj.weight": (width, 3, 16, 16)}

    def linear(name, out, into):
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name, size):
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    shapes["patch_embed.proj.bias"] = (width,)
    for stack, size, depth in (("enc_blocks", width, depths[0]), ("dec_blocks", decoder, depths[1])):
        for name in (f"{stack}.{layer}" for layer in range(depth)):
            norm(f"{name}.norm1", size)
            norm(f"{name}.norm2", size)
            linear(f"{name}.attn.qkv", 3 * size, size)
            linear(f"{name}.attn.proj", size, size)
            linear(f"{name}.mlp.fc1", 4 * size, size)
            linear(f"{name}.mlp.fc2", size, 4 * size)
            if stack == "dec_blocks":
                norm(f"{name}.norm3", size)
                norm(f"{name}.norm_y", size)
                for each in ("projq", "projk", "projv", "proj"):
                    linear(f"{name}.cross_attn.{each}", size, size)
    norm("enc_norm", width)
    linear("decoder_embed", decoder, width)
    norm("dec_norm", decoder)
    linear("prediction_head", 768, decoder)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.slow
def test_dust3r_at_its_real_size(save):
    """As released: ViT-L and two decoders of 12 blocks, without the heads' own tensors."""
    state = dust3r(croco_state(1024, 768, depths=(24, 12)))
    args = argparse.Namespace(model=dust3r_string((1024, 24, 16), (768, 12, 12)))
    weights, report = import_file(save(state, args=args))
    assert (weights.sizes.encoder_depth, weights.sizes.decoder_depth, weights.sizes.encoder_heads) == (24, 12, 16)
    encoder = 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 1024 * (768 + 1)
    decoder = 12 * (16 * 768**2 + 21 * 768) + 2 * 768 + 768 * (1024 + 1)
    assert report.parameters == encoder + decoder


def fixed(**changes):
    return KWARGS | {"pos_embed": "RoPE100"} | changes


@pytest.mark.parametrize(
    ("name", "change", "others", "flags", "message"),
    [
        # What the file does not tell is asked for.
        ("croco_rope100", {}, {}, HEADS, "which positions it has; give --positions=rope100"),
        (
            "croco_rope100",
            {},
            {},
            {"positions": "rope100"},
            r"how many heads the encoder has .* give --encoder_heads=N",
        ),
        ("mae", {}, {}, {"encoder_heads": 4}, r"how many heads the decoder has .* give --decoder_heads=N"),
        ("mae", {}, {}, HEADS | {"decoder_heads": 5}, "decoder_heads 5: width 48 of the decoder is no multiple"),
        # What it tells must agree with its tensors and with the flags.
        ("croco_rope100", {}, {"croco_kwargs": fixed(enc_depth=12)}, {}, "enc_depth=12, and its tensors 3"),
        ("croco_rope100", {}, {"croco_kwargs": fixed(dec_embed_dim=64)}, {}, "dec_embed_dim=64, and its tensors 48"),
        ("croco_rope100", {}, {"croco_kwargs": fixed(patch_size=8)}, {}, "patch_size=8, and its tensors 16"),
        ("croco_rope100", {}, {"croco_kwargs": fixed(pos_embed="RoPE50")}, {}, "pos_embed='RoPE50' is not supported"),
        ("croco_rope100", {}, {"croco_kwargs": fixed(mask_ratio=1.5)}, {}, r"mask_ratio 1\.5 is no number between"),
        ("croco_rope100", {}, {"croco_kwargs": fixed(enc_num_heads="4")}, {}, "encoder_heads '4'"),
        ("croco_rope100", {}, {"croco_kwargs": fixed(enc_depth={})}, {}, "enc_depth of type dict"),
        ("croco_rope100", {}, {"croco_kwargs": [3]}, {}, "croco_kwargs is of type list"),
        ("croco_cosine", {}, {"croco_kwargs": fixed()}, {}, r"added positions \(enc_pos_embed\), and is said"),
        ("croco_cosine", {}, {"croco_kwargs": KWARGS | {"img_size": 96}}, {}, r"img_size=96 makes a grid of \(6, 6\)"),
        ("croco_rope100", {}, {"croco_kwargs": fixed()}, {"positions": "cosine"}, "--positions=cosine: its model argu"),
        ("croco_rope100", {}, {"croco_kwargs": fixed()}, {"encoder_heads": 8}, "--encoder_heads=8: .*enc_num_heads=4"),
        ("croco_cosine", {}, {}, HEADS | {"positions": "rope100"}, r"added positions \(enc_pos_embed\)"),
        ("croco_cosine", {}, {}, HEADS | {"positions": "learned"}, "--positions=learned is for timm's encoders only"),
        (
            "croco_rope100",
            {},
            {"croco_kwargs": fixed(), "args": argparse.Namespace(model="CroCoNet(enc_depth=2)")},
            {},
            "croco_kwargs say enc_depth=3, and args.model 2",
        ),
        (
            "croco_rope100",
            {},
            {"args": argparse.Namespace(model="CroCoNet(enc_depth=__import__('os').system('true'))")},
            {},
            r"model string is not understood: .* is no plain value: CroCoNet\(enc_depth=__import__",
        ),
        # Tensors that are missing, mis-shaped, or of no use.
        ("mae", {"norm.bias": None}, {}, HEADS, r"tensor norm\.bias is missing"),
        ("mae", {"patch_embed.proj.weight": None}, {}, HEADS, r"patch_embed\.proj\.weight is missing"),
        ("mae", {"norm.bias": torch.ones(3)}, {}, HEADS, r"norm\.bias has shape \(3,\); \(64,\) is needed"),
        ("mae", {"norm.bias": torch.ones(64, dtype=torch.int64)}, {}, HEADS, r"norm\.bias holds int64"),
        ("mae", {"patch_embed.proj.weight": torch.ones(64, 3)}, {}, HEADS, r"\(64, 3\); 4 dimensions are needed"),
        ("mae", {"blocks.4.norm1.weight": torch.ones(64)}, {}, HEADS, r"blocks\.3 is missing, and there is blocks\.4"),
        ("mae", {"blocks.0.ls1.gamma": torch.ones(64)}, {}, HEADS, r"blocks\.0\.ls1\.gamma has no place"),
        ("mae", {"patch_embed.norm.weight": torch.ones(64)}, {}, HEADS, r"patch_embed\.norm\.weight has no place"),
        ("croco_cosine", {"cls_token": torch.ones(1, 1, 64)}, {}, HEADS, "cls_token has no place"),
        ("mae", {"pos_embed": torch.zeros(1, 17, 64)}, {}, HEADS, "pos_embed is off the fixed sine-cosine rows"),
        ("mae", {"decoder_pos_embed": torch.full((1, 17, 48), math.nan)}, {}, HEADS, "decoder_pos_embed is off"),
        ("mae", {"pos_embed": torch.zeros(1, 16, 64)}, {}, HEADS, r"\(1, 16, 64\), which is not 64 numbers for each"),
        ("croco_cosine", {"enc_pos_embed": torch.zeros(15, 64)}, {}, HEADS, r"\(15, 64\).* on a square grid"),
        # Formats that do not fit.
        (
            "mae",
            {"decoder_blocks_croco.0.norm1.weight": torch.ones(48)},
            {},
            HEADS,
            "any of mimic, mae; choose .*--format",
        ),
        ("mae", {}, {}, HEADS | {"format": "mimic"}, r"--format=mimic: there is no tensor decoder_blocks_croco\.\*"),
        ("mae", {}, {}, HEADS | {"format": "other"}, "--format=other: is none of croco, dust3r, mimic, mae, timm"),
        ("mae", {}, {}, HEADS | {"format": "timm"}, "--decoder_heads=4: it has no decoder"),
    ],
)
def test_whatever_does_not_fit_is_one_line_that_names_it(name, change, others, flags, message, fixtures, save):
    state = {key: value for key, value in (fixtures[name][1] | change).items() if value is not None}
    path = save(state, **others)
    with pytest.raises(InputError, match=message) as caught:
        import_file(path, **flags)
    assert str(caught.value).startswith(f"{path}: ")


def test_no_known_format(save):
    path = save({"layer1.0.conv1.weight": torch.ones(2)})
    with pytest.raises(
        InputError, match=r"none of the formats .* --format \(croco: enc_blocks\.\*, .*timm: patch_embed"
    ):
        import_file(path)


def test_the_encoder_of_any_by_format(fixtures, save):
    _, state = fixtures["mae"]
    weights, report = import_file(save(state), "timm", encoder_heads=4)
    assert weights.kind == "vit"
    assert "decoder_pred.bias" in report.left_over["no part of the model"]
    whole, _ = import_file(save(state), **HEADS)
    jax.tree.map(np.testing.assert_array_equal, weights.params["encoder"], whole.params["encoder"])


def described(**changes):
    sizes = {
        "encoder_width": 64,
        "encoder_depth": 3,
        "encoder_heads": 4,
        "decoder_width": 48,
        "decoder_depth": 2,
        "decoder_heads": 4,
        "positions": "cosine",
        "class_token": True,
        "mask_ratio": 0.6,
        "norm_pix_loss": False,
    }
    return {"kind": "mae", "names": "mae", "about": {"step": 7}, "sizes": sizes} | changes


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_our_own_files_tell_everything(kind, fixtures, save):
    _, state = fixtures["mae"]
    text = json.dumps(described())
    others = {"mimic_jax": text} if kind == "pth" else {"metadata": {"mimic_jax": text}}
    path = save(state, kind, **others)
    weights, report = import_file(path)
    assert weights.sizes == Sizes(**described()["sizes"])
    assert report.assumed == ()
    assert weights.about["step"] == 7
    jax.tree.map(np.testing.assert_array_equal, weights.params, load(path).params)
    import_file(path, "mae", **HEADS, positions="cosine")  # flags may repeat it …
    for flags in ({"format": "mimic"}, {"encoder_heads": 8}, {"positions": "rope100"}):  # … and not contradict it
        with pytest.raises(InputError, match=f"--{next(iter(flags))}=.*: the file says"):
            import_file(path, **flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "mimic_jax metadata is damaged"),
        ("[]", "mimic_jax metadata is damaged"),
        (json.dumps(described(sizes=[])), "mimic_jax metadata is damaged"),
        (json.dumps(described(kind="croco")), "names 'mae' do not go with kind 'croco'"),
        (json.dumps(described(names="x")), "names 'x' do not go"),
        (json.dumps(described(sizes={"encoder_width": 3})), "mimic_jax metadata is damaged"),
        (
            json.dumps(described(sizes=described()["sizes"] | {"encoder_depth": 3.0})),
            r"damaged \(encoder_depth is 3\.0\)",
        ),
        (
            json.dumps(described(sizes=described()["sizes"] | {"position_grid": [4]})),
            r"damaged \(position_grid is \[4\]\)",
        ),
        (json.dumps(described(sizes=described()["sizes"] | {"encoder_depth": 2})), r"blocks\.2\.\S+ has no place"),
        (json.dumps(described(sizes=described()["sizes"] | {"encoder_depth": 4})), r"blocks\.3\.\S+ is missing"),
        (json.dumps(described(sizes=described()["sizes"] | {"position_grid": [2, 4]})), "on a grid of 2 × 4"),
    ],
)
def test_what_our_own_files_tell_is_checked(text, message, fixtures, save):
    path = save(fixtures["mae"][1], "safetensors", metadata={"mimic_jax": text})
    with pytest.raises(InputError, match=message):
        import_file(path)
