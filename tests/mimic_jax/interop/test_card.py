"""Model cards: every piece of Python on them that can run here is run, by itself, in the folder of the export."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.interop.exporting import export
from tests.mimic_jax.interop.timm_here import import_timm
from tests.random_weights import random_weights

ROOT = Path(__file__).parents[3]
COSINE = {"positions": "cosine", "position_grid": (2, 2)}
TOKEN = COSINE | {"class_token": True}
WIDE = {"position_grid": (2, 3)}
MODELS = {
    "croco": ("croco", COSINE | WIDE),
    "rotary": ("croco", {}),
    "mimic": ("croco", TOKEN),
    "mae": ("mae", TOKEN),
    "learned": (
        "vit",
        TOKEN | WIDE | {"positions": "learned", "decoder_width": 0, "decoder_depth": 0, "decoder_heads": 0},
    ),
}
EXPORTS = [
    ("rotary", "croco.pth", "croco_pth"),
    ("mimic", "mimic.pth", "mimic_pth"),
    ("mae", "mae.pth", "mae_pth"),
    ("croco", "timm.pth", "timm_vit"),
    ("learned", "timm learned.safetensors", "timm_vit"),
    ("mae", "multimae.pth", "multimae"),
    ("rotary", "whole.safetensors", "safetensors"),
    ("mae", "folder", "orbax"),
]
# Runs each block with a namespace of its own, and saves what the model of the block makes of the images, if it has one.
RUN_BLOCKS = """
import json, sys
import numpy as np
from tests.mimic_jax.interop.timm_here import import_timm

import_timm()
for index, (block, images) in enumerate(json.load(open("blocks.json"))):
    names = {}
    try:
        exec(block, names)
    except Exception as error:
        sys.exit(f"{block}\\n{type(error).__name__}: {error}")
    if hasattr(names.get("model"), "forward_features"):
        import torch

        with torch.no_grad():
            features = names["model"].eval().forward_features(torch.from_numpy(np.load(images).transpose(0, 3, 1, 2)))
        np.save(f"{index}.npy", features.numpy())
    elif "features" in names:
        np.save(f"{index}.npy", np.asarray(names["features"]))
    elif "params" in names:
        np.save(f"{index}.npy", np.asarray(names["params"]["encoder"]["norm"]["scale"]))
    else:
        np.save(f"{index}.npy", np.asarray(sum(tensor.numel() for tensor in names["tensors"].values())))
"""


def blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def grid_of(model: str) -> tuple[int, int]:
    return MODELS[model][1].get("position_grid", (14, 14))


def images_of(model: str) -> np.ndarray:
    rows, columns = grid_of(model)
    return np.random.default_rng(0).standard_normal((2, 8 * rows, 8 * columns, 3), np.float32)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """By export and kind of block: the block's result. All run in one process, as imports take longest."""
    import_timm()
    folder = tmp_path_factory.mktemp("exports")
    todo, keys = [], []
    for model, name, format in EXPORTS:
        kind, sizes = MODELS[model]
        weights = random_weights(kind, **sizes)
        export(weights, folder / name, format)
        np.save(folder / f"{name}.npy", images_of(model))
        for block in blocks((folder / f"{name}.md").read_text()):
            words = {"backbone": "mimic_jax", "timm": "timm", "orbax": "orbax", "models.croco": "croco"}
            key = next((key for word, key in words.items() if f"import {word}" in block or f"from {word}" in block), "")
            if key != "croco":  # naver/croco's code is not installed
                todo.append((block, f"{name}.npy"))
                keys.append((name, key or "tensors"))
    (folder / "blocks.json").write_text(json.dumps(todo))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", RUN_BLOCKS]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, {key: np.load(folder / f"{index}.npy") for index, key in enumerate(keys)}


def test_each_card_has_a_block_for_each_framework_that_can_load_it(ran):
    found = {}
    for name, framework in ran[1]:
        found.setdefault(name, set()).add(framework)
    assert found == {
        "croco.pth": {"mimic_jax", "tensors"},
        "mimic.pth": {"mimic_jax", "tensors"},
        "mae.pth": {"mimic_jax", "tensors"},
        "timm.pth": {"timm", "mimic_jax"},
        "timm learned.safetensors": {"timm", "mimic_jax"},
        "multimae.pth": {"tensors"},
        "whole.safetensors": {"mimic_jax", "tensors"},
        "folder": {"mimic_jax", "orbax"},
    }


@functools.cache
def ours(model: str) -> np.ndarray:
    """Features of random images and of a black one, class token included, from the weights before any export."""
    kind, sizes = MODELS[model]
    black = (np.zeros(3, np.float32) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    drawn = images_of(model)
    images = np.concatenate([drawn, np.broadcast_to(black.astype(np.float32), drawn[:1].shape)])
    return np.asarray(random_weights(kind, **sizes).model().encode(jnp.asarray(images)))


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, name, format in EXPORTS if format == "timm_vit"])
def test_timm_computes_our_features(ran, model, name):
    np.testing.assert_allclose(ran[1][name, "timm"], ours(model)[:-1], atol=1e-5)


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, name, format in EXPORTS if format != "multimae"])
def test_mimic_jax_computes_what_was_exported(ran, model, name):
    """The block encodes black images, of the grid that the positions are of where there is one."""
    _, sizes = MODELS[model]
    patches = ours(model)[-1, int(sizes.get("class_token", False)) :]
    np.testing.assert_allclose(ran[1][name, "mimic_jax"], patches.reshape(1, *grid_of(model), -1), atol=1e-5)


def test_plain_arrays_are_those_exported(ran):
    folder, results = ran
    np.testing.assert_array_equal(
        results["folder", "orbax"], random_weights("mae", **TOKEN).params["encoder"]["norm"]["scale"]
    )
    # Parameters are counted without the fixed tables; a rotary model has none.
    for name in ("croco.pth", "whole.safetensors"):
        assert f": {int(results[name, 'tensors']):,} parameters" in (folder / f"{name}.md").read_text()


def test_the_block_that_cannot_run_here_says_so(tmp_path):
    pytest.importorskip("torch")
    export(random_weights("croco"), tmp_path / "croco.pth", "croco_pth")
    card = (tmp_path / "croco.pth.md").read_text()
    code = next(block for block in blocks(card) if "CroCoNet(**" in block)
    compile(code, "card", "exec")
    assert "This one is not tested" in card


def test_a_card_tells_where_weights_come_from(tmp_path):
    about = {
        "origin": "runs/first",
        "step": 400,
        "config": {"batch_size": 64, "model": {"encoder_width": 128}},
        "data": [{"name": "rooms", "records": 1200}],
        "metrics": {"step": 400, "loss": 0.25},
    }
    export(random_weights("croco", about=about), tmp_path / "a.safetensors", "safetensors")
    card = (tmp_path / "a.safetensors.md").read_text()
    assert "origin: runs/first" in card
    assert "step: 400" in card
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", card, re.DOTALL)]
    assert shown == [about["config"], about["data"], about["metrics"]]


@pytest.mark.parametrize(
    ("kind", "sizes", "format", "words"),
    [
        ("croco", {}, "croco_pth", ["`img_size`"]),
        ("croco", {"predicts": False}, "croco_pth", ["mask token, a prediction head, or any other head"]),
        ("mae", TOKEN, "timm_vit", ["decoder"]),
        ("mae", TOKEN, "multimae", ["final norm", "decoder", "sizes"]),
        ("croco", {"positions": "cosine"}, "safetensors", ["tables of positions"]),
    ],
)
def test_a_card_tells_what_is_not_in_the_file(tmp_path, kind, sizes, format, words):
    pytest.importorskip("torch")
    output = tmp_path / ("a.safetensors" if format == "safetensors" else "a.pth")
    export(random_weights(kind, **sizes), output, format)
    card = output.with_name(f"{output.name}.md").read_text()
    section = card.partition("## What is not in it")[2].partition("##")[0]
    assert "optimizer" in section
    for each in words:
        assert each in section
