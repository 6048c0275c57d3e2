"""`python -m launch.finetune`: from weights to a workdir, whole, frozen, on few images, interrupted, and mistaken."""

import json
import re
import signal

import numpy as np
import pytest

from mimic_jax import backbone
from tests import commands
from tests.datasets import make_pair, write_dataset
from tests.labelled import finetune, start, words, write_labelled
from tests.launch.training import losses, metrics, parameters, steps, wait_for_step
from tests.mimic_jax.interop.timm_here import import_timm


def refused(done, pattern):
    """One line on standard error, exit code 2."""
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: .*{pattern}.*\n", done.stderr), done.stderr


def encoder_of(workdir, step):
    found = parameters(workdir, step)
    return {name: value for name, value in found.items() if name.startswith("encoder/")}


def test_a_run_starts_from_the_encoder_and_trains_all_of_the_model(depth_run, pretrained):
    said = depth_run.with_name("said").read_text()
    assert re.search(r"starts from 16 of \d+ parameters; fresh: head", said)
    assert "11 images to train on; 12 steps of 4 images" in said
    assert "3 images to evaluate on" in said
    before, after = encoder_of(pretrained, 2), encoder_of(depth_run, 12)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.shape == after[name].shape
        # A few steps at a rate of 1e-4 at most move each number by less than a thousandth, and nearly all of them.
        moved = np.abs(after[name] - value)
        assert 0 < moved.max() < 2e-3, name
    assert any(name.startswith("head/") for name in parameters(depth_run, 12))
    evaluations = {line["step"]: line["evaluation"] for line in metrics(depth_run) if "evaluation" in line}
    assert list(evaluations) == [4, 8, 12]
    for numbers in evaluations.values():
        assert 0 < numbers["depth_absrel"] < 10
        assert np.isfinite(list(numbers.values())).all()


def test_the_sizes_of_the_encoder_come_from_the_weights(depth_run, pretrained):
    described, given = (json.loads((folder / "model.json").read_text()) for folder in (depth_run, pretrained))
    assert described["kind"] == "vit"
    encoder = {name: value for name, value in given["sizes"].items() if name.startswith(("encoder_", "patch"))}
    assert encoder == {name: described["sizes"][name] for name in encoder}
    assert encoder["encoder_width"] == 16
    assert described["sizes"]["decoder_depth"] == 0
    assert described["seen"] == {"size": [40, 40], "crop": [32, 32]}
    assert json.loads((depth_run / "config.json").read_text())["model"]["encoder_depth"] == 2


def test_a_frozen_encoder_stays_bit_for_bit_and_the_head_learns_from_few_images(rooms, pretrained, tmp_path):
    frozen = ["--config.optimizer.multipliers=(('encoder/.*', 0.0),)"]
    changes = {"run__checkpoint_every": 1, "evals__depth__every": 0, "steps": 2, "batch_size": 2, "data__shots": 3}
    done = finetune("depth", rooms, tmp_path / "run", *frozen, init=pretrained, **changes)
    assert done.returncode == 0, done.stderr
    assert "3 images to train on" in done.stdout
    assert "3 images are used for training (config.data.shots, config.data.fraction)" in done.stdout
    before = encoder_of(pretrained, 2)
    for step in (1, 2):
        after = encoder_of(tmp_path / "run", step)
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    heads = [
        {name: value for name, value in parameters(tmp_path / "run", step).items() if name.startswith("head/")}
        for step in (1, 2)
    ]
    assert heads[0]
    for name, value in heads[0].items():
        assert not np.array_equal(value, heads[1][name]), name


def test_stopped_and_resumed_it_ends_bit_identical(rooms, pretrained, normals_run, tmp_path):
    changes = {"init": pretrained, "evals__normals__every": 2, "run__checkpoint_every": 1000}
    process = start("normals", rooms, tmp_path / "run", **changes)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    *_, stopped = steps(tmp_path / "run")
    assert 3 <= stopped < 12, "the run ended before it could be stopped"
    assert f"SIGTERM: step {stopped} is saved" in out
    done = finetune("normals", rooms, tmp_path / "run", **changes)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped}" in done.stdout
    found, expected = parameters(tmp_path / "run", 12), parameters(normals_run, 12)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert losses(tmp_path / "run") == losses(normals_run)


def test_a_fine_tuned_encoder_is_a_backbone(depth_run, pretrained):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    tuned, plain = (backbone.load(path) for path in (depth_run, pretrained))
    features, before = (np.asarray(model.encode(images)) for model in (tuned, plain))
    assert features.shape == (2, 2, 3, 16)
    # A few small steps from where it started, in every channel.
    assert 0 < np.abs(features - before).max() < 0.2 * np.abs(before).max()
    assert tuned.seen.crop == (32, 32)


@pytest.mark.parametrize("file", ["encoder.safetensors", pytest.param("orbax", marks=pytest.mark.slow)])
def test_the_fine_tuned_encoder_is_exported(depth_run, tmp_path, file):
    format = "orbax" if file == "orbax" else "safetensors"
    flags = [f"--weights={depth_run}", f"--format={format}", f"--output={tmp_path / file}"]
    done = commands.run(["launch.export", *flags])
    assert (done.returncode, done.stderr) == (0, "")
    images = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 3), np.uint8)
    found = backbone.load(tmp_path / file)
    assert found.weights.kind == "vit"
    np.testing.assert_array_equal(found.encode(images), backbone.load(depth_run).encode(images))
    if format == "safetensors":
        # Its own tensors, read by the safetensors library.
        load_file = pytest.importorskip("safetensors.numpy").load_file
        tensors = load_file(tmp_path / file)
        assert not [name for name in tensors if "head" in name]
        kernel = parameters(depth_run, 12)["encoder/patch_embed/kernel"]
        embedding = next(tensor for name, tensor in tensors.items() if name.endswith("patch_embed.proj.weight"))
        np.testing.assert_array_equal(embedding.transpose(2, 3, 1, 0).reshape(kernel.shape), kernel)


@pytest.mark.slow
def test_an_encoder_of_added_positions_is_exported_for_timm(rooms, tmp_path):
    """The same features by timm's own model."""
    torch = pytest.importorskip("torch")
    sizes = {"encoder_width": 32, "encoder_depth": 2, "encoder_heads": 2, "patch_size": 8}
    fields = {f"model__{name}": value for name, value in sizes.items()}
    fields |= {"model__positions": "cosine", "model__class_token": True, "steps": 2, "evals__normals__every": 0}
    done = finetune("normals", rooms, tmp_path / "run", **fields)
    assert done.returncode == 0, done.stderr
    flags = [f"--weights={tmp_path / 'run'}", "--format=timm_vit", f"--output={tmp_path / 'encoder.pth'}"]
    done = commands.run(["launch.export", *flags])
    assert done.returncode == 0, done.stderr
    model = import_timm().models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool="", norm_layer=None
    )
    model.load_state_dict(torch.load(tmp_path / "encoder.pth", weights_only=True)["model"])
    images = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), np.uint8)
    normalized = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = model.eval()(torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    found = np.asarray(backbone.load(tmp_path / "run").encode(images)).reshape(1, 16, 32)
    np.testing.assert_allclose(found, expected[:, 1:], atol=2e-4)


def test_what_cannot_be_started_from_or_trained_on_gets_one_line(rooms, pretrained, tmp_path):
    run = lambda data, **changes: finetune("depth", data, tmp_path / "run", **changes)  # noqa: E731
    refused(run(rooms), r"config\.model\.encoder_width is not set: .*--config\.init=WEIGHTS")
    refused(run(rooms, init=tmp_path / "absent"), "absent")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    refused(run(rooms, init=tmp_path / "junk.pth"), r"junk\.pth")
    refused(
        run(rooms, init=pretrained, model__encoder_width=24),
        r"config\.init: these weights are of another model.*encoder_width=16",
    )
    refused(run(tmp_path / "absent", init=pretrained), "absent")
    write_dataset(tmp_path / "pairs", [make_pair(0)], shards=1)
    refused(run(tmp_path / "pairs", init=pretrained), "pairs.*images")
    write_labelled(tmp_path / "normals", 4, ("normals",))
    refused(run(tmp_path / "normals", init=pretrained), "normals: its images have no depth")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_mistyped_fields_get_one_line(rooms, pretrained, tmp_path):
    run = lambda **changes: finetune("depth", rooms, tmp_path / "run", init=pretrained, **changes)  # noqa: E731
    refused(run(depth__loss="huber"), r"config\.depth\.loss='huber' must be 'berhu'")
    refused(run(depth__lss="l1"), r"--config\.depth\.lss: the config has no such field")
    refused(run(data__shots=0), r"config\.data\.shots=0 must be at least 1")
    refused(run(data__crop=36), r"config\.data\.crop=36 must be a multiple of config\.model\.patch_size=8")
    refused(run(optimizer__layer_decay=1.5), r"config\.optimizer\.layer_decay=1\.5 must be")
    pattern = "--config.optimizer.multipliers=(('encodr/.*', 0.0),)"
    refused(finetune("depth", rooms, tmp_path / "run", pattern, init=pretrained), r"'encodr/\.\*' matches no parameter")
    everything = "--config.optimizer.multipliers=(('.*', 0.0),)"
    refused(finetune("depth", rooms, tmp_path / "run", everything, init=pretrained), "freezes every parameter")


def test_another_task_is_not_resumed_in_a_workdir(rooms, pretrained, depth_run):
    done = commands.run(words("normals", rooms, depth_run, init=pretrained))
    refused(done, "task")
