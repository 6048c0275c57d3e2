"""Weights by path: from the checkpoints of any task, and from folders of today and of before."""

import ast
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax import backbone
from mimic_jax.command import InputError
from mimic_jax.interop.exporting import export
from mimic_jax.interop.load import load
from mimic_jax.interop.weights import save_folder
from mimic_jax.models.description import Description, Seen
from mimic_jax.training.checkpoint import Checkpoints
from mimic_jax.training.run import open_run
from mimic_jax.training.state import TrainState
from mimic_jax.workdir import write_model
from tests.random_weights import random_weights
from tests.toy_task import make_toy, toy_config

INTEROP = Path(__file__).parents[3] / "mimic_jax" / "interop"
SEEN = Seen((40, 48), (32, 40))
ENCODER = {"decoder_width": 0, "decoder_depth": 0, "decoder_heads": 0}


def write_workdir(folder, weights, params, average=None, config=None):
    """A workdir of a run, with a checkpoint of step 3."""
    run = open_run(toy_config(), folder, make_toy)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {"task": "depth"}))
    write_model(folder, Description(weights.kind, weights.sizes, SEEN))
    number = jnp.zeros((), jnp.int32)
    params, average = (tree and jax.tree.map(jnp.asarray, tree) for tree in (params, average))
    with Checkpoints(run) as checkpoints:
        checkpoints.save(3, TrainState(number, params, {}, (), average, number))
    return folder


def with_head(params):
    return params | {"head": {"layers": {index: {"kernel": np.ones((2, 3), np.float32)} for index in range(11)}}}


def assert_equal(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_of_a_fine_tuned_encoder_the_encoder_is_loaded(tmp_path):
    weights = random_weights("vit", **ENCODER)
    workdir = write_workdir(tmp_path / "depth", weights, with_head(weights.params))
    (workdir / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n')
    found = load(workdir)
    assert (found.kind, found.sizes, found.seen) == ("vit", weights.sizes, SEEN)
    assert_equal(found.params, weights.params)
    assert found.about == {
        "origin": str(workdir),
        "step": 3,
        "config": {"task": "depth"},
        "metrics": {"step": 2, "loss": 1.0},
    }
    model = backbone.load(workdir)
    assert model.seen == SEEN
    images = np.random.default_rng(0).integers(0, 256, (1, *SEEN.crop, 3), np.uint8)
    np.testing.assert_array_equal(model.encode(images), backbone.Backbone(weights).encode(images))


def test_the_average_is_loaded_where_the_run_keeps_one(tmp_path):
    weights, average = random_weights("vit", **ENCODER), random_weights("vit", **ENCODER, seed=1)
    workdir = write_workdir(tmp_path / "run", weights, with_head(weights.params), with_head(average.params))
    assert_equal(load(workdir).params, average.params)


def test_a_checkpoint_of_another_model_than_described_is_named(tmp_path):
    weights = random_weights("vit", **ENCODER)
    missing = weights.params["encoder"] | {}
    del missing["norm"]
    workdir = write_workdir(tmp_path / "missing", weights, {"encoder": missing})
    with pytest.raises(InputError, match=r"missing/checkpoints/3: has no parameter encoder\.norm\.(bias|scale)"):
        load(workdir)
    narrow = random_weights("vit", **ENCODER | {"encoder_width": 64})
    workdir = write_workdir(tmp_path / "narrow", weights, narrow.params)
    with pytest.raises(InputError, match=r"narrow/checkpoints/3: parameter encoder\.\S+ has shape \("):
        load(workdir)


def half(weights):
    return jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf, jnp.bfloat16)), weights.params)


@pytest.mark.parametrize("where", ["workdir", "folder"])
def test_bfloat16_is_kept_and_exported_exactly(tmp_path, where):
    whole = random_weights("croco", positions="cosine", position_grid=(2, 3))
    params = half(whole)
    if where == "workdir":
        write_workdir(tmp_path / "w", whole, params)
    else:
        save_folder(type(whole)(whole.kind, whole.sizes, params, {}, SEEN), tmp_path / "w")
    found = load(tmp_path / "w")
    assert_equal(found.params, params)
    export(found, tmp_path / "again", "orbax")
    assert_equal(load(tmp_path / "again").params, params)
    card = (tmp_path / "again.md").read_text()
    assert "parameters, bfloat16." in card
    assert "| images in training | 32×40, cut from 40×48 |" in card
    export(found, tmp_path / "file.safetensors", "safetensors")
    assert "parameters, float32." in (tmp_path / "file.safetensors.md").read_text()
    again = load(tmp_path / "file.safetensors")
    assert again.seen == SEEN
    assert_equal(again.params, jax.tree.map(lambda leaf: leaf.astype(np.float32), params))


def test_a_folder_of_before_has_its_image_sizes_in_its_config(tmp_path):
    weights = random_weights("vit", {"config": {"data": {"size": 68, "crop": [32, 64]}}}, **ENCODER)
    save_folder(weights, tmp_path / "w")
    assert "seen" not in json.loads((tmp_path / "w" / "weights.json").read_text())
    assert load(tmp_path / "w").seen == Seen((68, 68), (32, 64))
    export(weights, tmp_path / "w.safetensors", "safetensors")
    assert load(tmp_path / "w.safetensors").seen == Seen((68, 68), (32, 64))
    save_folder(random_weights("vit", {"config": {"task": "depth"}}, **ENCODER), tmp_path / "other")
    assert load(tmp_path / "other").seen is None


def test_a_weights_folder_of_another_shape_is_named(tmp_path):
    weights = random_weights("vit", **ENCODER)
    save_folder(weights, tmp_path / "w")
    path = tmp_path / "w" / "weights.json"
    described = json.loads(path.read_text())
    described["sizes"]["encoder_width"] = 64
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"w/params: parameter encoder\.\S+ has shape"):
        load(tmp_path / "w")
    with pytest.raises(InputError, match=r"w: is not empty; give a new folder"):
        save_folder(weights, tmp_path / "w")


def test_interop_does_not_import_training():
    files = list(INTEROP.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", None) or ""
            assert not any(f"{module}.{name}".lstrip(".").startswith("mimic_jax.training") for name in names), file
