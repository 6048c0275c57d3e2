"""Exports against the published models' own tensors, timm's models, and what reads them back."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_jax.command import InputError
from mimic_jax.interop import names
from mimic_jax.interop.exporting import FORMATS, export, holds
from mimic_jax.interop.importing import import_file
from mimic_jax.interop.load import load
from mimic_jax.interop.tensor_files import read_tensors, write_pth
from mimic_jax.interop.weights import Weights, load_folder
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from tests.mimic_jax.interop.timm_here import import_timm
from tests.random_weights import random_weights

# By fixture: the format of its own, the kind of model, the names, and the sizes that the numbers there do not tell.
FIXTURES = {
    "croco_cosine": ("croco_pth", "croco", names.CROCO, {"positions": "cosine", "position_grid": (4, 4)}),
    "croco_rope100": ("croco_pth", "croco", names.CROCO, {"positions": "rope100"}),
    "mimic_croco_cls": (
        "mimic_pth",
        "croco",
        names.MIMIC,
        {"positions": "cosine", "position_grid": (4, 4), "class_token": True},
    ),
    "mae": ("mae_pth", "mae", names.MAE, {"positions": "cosine", "position_grid": (4, 4), "class_token": True}),
}
ENDING = {"orbax": "", "safetensors": ".safetensors"}


@functools.cache
def published(parity: Path, fixture: str) -> tuple[Weights, names.Tensors, dict]:
    """The fixture as weights; its tensors; and what naver/croco builds its model with."""
    with np.load(parity / f"{fixture}.npz") as file:
        tensors = {name.removeprefix("param/"): file[name] for name in file.files if name.startswith("param/")}
        told = [name for name in file.files if name.startswith("in/") and file[name].ndim == 0]
        numbers = {name.removeprefix("in/"): file[name].item() for name in told}
    _, kind, table, others = FIXTURES[fixture]
    sizes = Sizes(
        encoder_width=numbers["enc_embed_dim"],
        encoder_depth=numbers["enc_depth"],
        encoder_heads=numbers["enc_num_heads"],
        decoder_width=numbers["dec_embed_dim"],
        decoder_depth=numbers["dec_depth"],
        decoder_heads=numbers["dec_num_heads"],
        patch_size=numbers["patch_size"],
        mask_ratio=numbers["mask_ratio"],
        **others,
    )
    params = names.from_published(abstract(kind, sizes), tensors, table)
    kwargs = dict(numbers)
    kwargs["pos_embed"] = "cosine" if sizes.positions == "cosine" else "RoPE100"
    return Weights(kind, sizes, params, {"origin": fixture}), tensors, kwargs


def bits(tensors: dict) -> dict:
    """By name: shape, type and bytes."""
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tensors)}
    return {name: (leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()) for name, leaf in flat.items()}


def read_back(path: Path, format: str) -> Weights:
    if format == "orbax":
        return load_folder(path)
    return import_file(path)[0]


def whole_formats(fixture: str) -> list[str]:
    return [FIXTURES[fixture][0], "safetensors", "orbax"]


@pytest.mark.parametrize(("fixture", "format"), [(each, form) for each in FIXTURES for form in whole_formats(each)])
def test_import_of_an_export_is_the_identity(parity, tmp_path, fixture, format):
    if format.endswith("_pth"):
        pytest.importorskip("torch")
    weights, _, _ = published(parity, fixture)
    output = tmp_path / f"weights{ENDING.get(format, '.pth')}"
    export(weights, output, format)
    found = read_back(output, format)
    assert found.kind == weights.kind
    assert found.sizes == weights.sizes
    assert bits(found.params) == bits(weights.params)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_export_of_an_import_is_the_identity(parity, tmp_path, fixture):
    """Names, shapes and bytes of the published state dicts, position tables included."""
    pytest.importorskip("torch")
    _, tensors, kwargs = published(parity, fixture)
    format = FIXTURES[fixture][0]
    theirs = tmp_path / "theirs.pth"
    write_pth(theirs, tensors, **({"croco_kwargs": kwargs} if format == "croco_pth" else {}))
    # Heads are in no tensor, and beside them only of CroCo.
    heads = {} if format == "croco_pth" else {"encoder_heads": 4, "decoder_heads": 4}
    weights = import_file(theirs, **heads)[0]
    for ours in (tmp_path / "ours.pth", tmp_path / "ours.safetensors"):
        export(weights, ours, format if ours.suffix == ".pth" else "safetensors")
        assert bits(read_tensors(ours)[0]) == bits(tensors)


def test_croco_kwargs_are_those_of_the_published_model(parity, tmp_path):
    torch = pytest.importorskip("torch")
    weights, _, kwargs = published(parity, "croco_cosine")
    export(weights, tmp_path / "croco.pth", "croco_pth")
    assert torch.load(tmp_path / "croco.pth", weights_only=True)["croco_kwargs"] == kwargs
    rotary, _, kwargs = published(parity, "croco_rope100")
    export(rotary, tmp_path / "rope.pth", "croco_pth")
    # Rotary models are of no image size.
    assert torch.load(tmp_path / "rope.pth", weights_only=True)["croco_kwargs"] | {"img_size": 64} == kwargs


@st.composite
def models(draw) -> tuple[str, dict]:
    """A kind of model, and its sizes."""
    kind = draw(st.sampled_from(["croco", "mae", "vit"]))
    positions = draw(st.sampled_from(["cosine", "cosine", "rope100", "learned"]))
    side = draw(st.integers(1, 4))
    grid = draw(st.sampled_from([(side, side), (side, side + 1), None]))
    sizes = {
        "patch_size": draw(st.integers(1, 5)),
        "positions": positions,
        "class_token": positions != "rope100" and draw(st.booleans()),
        "position_grid": {"rope100": None, "cosine": grid, "learned": grid or (3, 2)}[positions],
        "mask_ratio": draw(st.sampled_from([0.5, 0.75, 0.9])),
        "norm_pix_loss": draw(st.booleans()),
        "predicts": kind != "croco" or draw(st.booleans()),
    }
    for part in ("encoder", "decoder"):
        there = part == "encoder" or kind != "vit"
        heads = draw(st.integers(1, 3)) if there else 0
        sizes |= {
            f"{part}_width": 4 * heads * draw(st.integers(1, 3)),
            f"{part}_depth": draw(st.integers(1, 3)) if there else 0,
            f"{part}_heads": heads,
        }
    return kind, sizes


@settings(max_examples=6)
@given(model=models(), origin=st.text())
def test_any_model_survives_each_format_that_holds_it(tmp_path_factory, model, origin):
    pytest.importorskip("torch")
    kind, sizes = model
    weights = random_weights(kind, about={"origin": origin}, **sizes)
    folder = tmp_path_factory.mktemp("exports")
    for format in ("croco_pth", "mimic_pth", "mae_pth", "safetensors", "orbax"):
        gridless = weights.sizes.positions == "cosine" and weights.sizes.position_grid is None
        if not holds(format, kind, weights.sizes) or (gridless and format.endswith("_pth")):
            continue
        output = folder / f"weights{ENDING.get(format, '.pth')}"
        export(weights, output, format)
        found = read_back(output, format)
        assert (found.kind, found.sizes) == (kind, weights.sizes)
        assert bits(found.params) == bits(weights.params)
        assert found.about.get("exported_from", found.about["origin"]) == origin


def test_a_vit_small_is_timms(tmp_path):
    """timm's own model of these sizes takes the file, strictly, and computes the same features."""
    timm, torch = import_timm(), pytest.importorskip("torch")
    weights = random_weights(
        "mae",
        encoder_width=384,
        encoder_depth=12,
        encoder_heads=6,
        patch_size=16,
        positions="cosine",
        class_token=True,
        position_grid=(14, 14),
    )
    export(weights, tmp_path / "vit_s.pth", "timm_vit")
    model = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0)
    model.load_state_dict(torch.load(tmp_path / "vit_s.pth", weights_only=True)["model"], strict=True)
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    with torch.no_grad():
        theirs = model.eval().forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(weights.model().encode(jnp.asarray(images)), theirs, atol=1e-4)


def test_a_timm_export_reads_back_as_the_encoder(tmp_path):
    weights = random_weights("croco", positions="cosine", position_grid=(2, 3))
    export(weights, tmp_path / "vit.safetensors", "timm_vit")
    found = import_file(tmp_path / "vit.safetensors")[0]
    assert found.kind == "vit"
    assert bits(found.params) == bits({"encoder": weights.params["encoder"]})


@pytest.mark.parametrize("positions", ["cosine", "learned"])
def test_multimae_is_timms_encoder_under_other_names(tmp_path, positions):
    """MultiMAE adds no position to its global token, and its table of positions is a picture of `width` channels."""
    pytest.importorskip("torch")
    weights = random_weights("mae", positions=positions, class_token=True, position_grid=(2, 3))
    export(weights, tmp_path / "multimae.pth", "multimae")
    export(weights, tmp_path / "timm.pth", "timm_vit")
    found, timm = (read_tensors(tmp_path / f"{name}.pth")[0] for name in ("multimae", "timm"))
    expected = {
        "global_tokens": timm["cls_token"] + timm["pos_embed"][:, :1],
        "input_adapters.rgb.proj.weight": timm["patch_embed.proj.weight"],
        "input_adapters.rgb.proj.bias": timm["patch_embed.proj.bias"],
        "input_adapters.rgb.pos_emb": np.stack(
            [timm["pos_embed"][0, 1:, channel].reshape(2, 3) for channel in range(128)]
        )[None],
    } | {name.replace("blocks.", "encoder."): value for name, value in timm.items() if name.startswith("blocks.")}
    assert bits(found) == bits(expected)


COSINE = {"positions": "cosine", "position_grid": (2, 2)}
TOKEN = COSINE | {"class_token": True}
WIDE = {"position_grid": (2, 3)}


@pytest.mark.parametrize(
    ("kind", "sizes", "can"),
    [
        ("croco", {}, ["croco_pth", "safetensors", "orbax"]),
        ("croco", COSINE, ["croco_pth", "timm_vit", "safetensors", "orbax"]),
        ("croco", COSINE | WIDE, ["timm_vit", "safetensors", "orbax"]),
        ("croco", TOKEN, ["mimic_pth", "timm_vit", "multimae", "safetensors", "orbax"]),
        ("croco", TOKEN | WIDE, ["timm_vit", "multimae", "safetensors", "orbax"]),
        ("mae", TOKEN, ["mae_pth", "timm_vit", "multimae", "safetensors", "orbax"]),
        ("mae", TOKEN | {"positions": "learned"}, ["timm_vit", "multimae", "safetensors", "orbax"]),
        ("mae", COSINE, ["timm_vit", "safetensors", "orbax"]),
        ("vit", TOKEN, ["timm_vit", "multimae", "safetensors", "orbax"]),
        ("vit", {}, ["safetensors", "orbax"]),
    ],
)
def test_a_format_that_cannot_hold_a_model_says_which_can(tmp_path, kind, sizes, can):
    weights = random_weights(kind, **sizes)
    assert [format for format in FORMATS if holds(format, kind, weights.sizes)] == can
    for format in set(FORMATS) - set(can):
        with pytest.raises(InputError, match=f"--format={format} holds .*: use {', '.join(can)}$"):
            export(weights, tmp_path / f"a{ENDING.get(format, '.pth')}", format)
    assert not list(tmp_path.iterdir())


def test_positions_need_a_grid_only_where_the_format_has_a_table(tmp_path):
    pytest.importorskip("torch")
    weights = random_weights("croco", positions="cosine")
    with pytest.raises(InputError, match=r"--format=croco_pth .* give --image_size=224"):
        export(weights, tmp_path / "a.pth", "croco_pth")
    export(weights, tmp_path / "a.safetensors", "safetensors")
    assert not [name for name in read_tensors(tmp_path / "a.safetensors")[0] if "pos_embed" in name]
    export(weights, tmp_path / "a.pth", "croco_pth", image_size=(24, 24))
    tables = {name: value.shape for name, value in read_tensors(tmp_path / "a.pth")[0].items() if "pos_embed" in name}
    assert tables == {"enc_pos_embed": (9, 128), "dec_pos_embed": (9, 64)}
    assert import_file(tmp_path / "a.pth")[0].sizes.position_grid == (3, 3)


@pytest.mark.parametrize(
    ("sizes", "image_size", "message"),
    [
        ({}, (24, 24), "--image_size=24x24: rotary positions hold for any size"),
        ({"positions": "cosine"}, (24, 20), "--image_size=24x20: .* patch size, 8, does not divide it"),
        ({"positions": "cosine"}, (0, 8), "--image_size=0x8: .* does not divide it"),
        (COSINE, (24, 24), "--image_size=24x24: these weights' positions are of 16x16 images"),
    ],
)
def test_an_image_size_that_does_not_fit_is_refused(tmp_path, sizes, image_size, message):
    with pytest.raises(InputError, match=message):
        export(random_weights("croco", **sizes), tmp_path / "a.safetensors", "safetensors", image_size=image_size)


@pytest.mark.parametrize(
    ("output", "format", "message"),
    [
        ("a.pth", "safetensors", "must end in .safetensors"),
        ("a.safetensors", "croco_pth", "must end in .pth"),
        ("a", "timm_vit", "must end in .pth or .safetensors"),
        ("a.pth", "orbax", "writes a folder; give a name without .pth"),
        ("a.pth", "onnx", "--format=onnx is none of croco_pth, mimic_pth"),
        ("..", "orbax", "has no name"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(tmp_path, output, format, message):
    with pytest.raises(InputError, match=message):
        export(random_weights("croco", **COSINE), tmp_path / output, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "format"), [("a.safetensors", "safetensors"), ("a", "orbax")])
def test_only_an_export_of_the_same_kind_is_replaced(tmp_path, name, format):
    first, second = (random_weights("croco", seed=seed) for seed in (0, 1))
    output = tmp_path / name
    export(first, output, format)
    with pytest.raises(InputError, match=f"{name}: is there already; .* --overwrite"):
        export(second, output, format)
    assert bits(load(output).params) == bits(first.params)
    export(second, output, format, overwrite=True)
    assert bits(load(output).params) == bits(second.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.md"]

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    other = tmp_path / "notes"
    if format == "safetensors":
        other = other.rename(tmp_path / "notes.safetensors")
    with pytest.raises(InputError, match="--overwrite leaves it alone"):
        export(second, other, format, overwrite=True)
    assert (other / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("name", "format"), [("a.safetensors", "safetensors"), ("a", "orbax")])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, name, format):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=f"file/{name}: cannot be written"):
        export(random_weights("croco"), tmp_path / "file" / name, format)
