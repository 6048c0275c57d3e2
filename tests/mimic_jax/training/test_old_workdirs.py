"""Workdirs as they were before tasks had an interface of their own: they resume, and their models are loaded.

The layout is written here by hand as the code of commit 63e3482 wrote it: names of fields in config.json, no
model.json, and a scalar `nonfinite_step` in the optimizer item. To try a workdir of that code itself: check it out, and
train configs/croco_tiny.py with the sizes below; today's code resumes it to the same losses.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import croco_tiny
from launch.workdirs import load_trained
from mimic_jax.checkpoints import checksum, read_params
from mimic_jax.command import InputError
from mimic_jax.interop.load import load
from mimic_jax.tasks import make_task
from mimic_jax.training import loop
from mimic_jax.training.checkpoint import Checkpoints
from mimic_jax.training.run import open_run
from tests.datasets import make_pair, write_dataset

SIZES = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2}
SIZES |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "patch_size": 8}


def config_of(dataset, **changes):
    config = croco_tiny.get_config()
    config.model.update(SIZES)
    config.data.update(train=str(dataset), size=32, crop=32)
    config.batch_size, config.steps, config.ema_decay = 4, 4, 0.5
    config.optimizer.update(warmup_steps=1, total_steps=4)
    config.evals.completion.update(every=2, examples=4, pictures=0)
    config.evals.correspondence.update(every=2, examples=4)
    config.run.update(log_every=1, checkpoint_every=2, remat="full")
    config.update_from_flattened_dict(changes)
    return config


def old_config(dataset) -> dict:
    """The same config as config.json of that time had it."""
    return {
        "accumulate": 1,
        "attention": "xla",
        "axis_rules": {"batch": ["data", "fsdp"], "embed": "fsdp", "heads": "tensor", "mlp": "tensor"},
        "batch_size": 4,
        "checkpoint_every": 2,
        "compute_dtype": "float32",
        "data": {
            **{"crop": 32, "jitter": 0.0, "size": 32, "swap": 0.5, "threads": 4, "train": str(dataset)},
            **{"views": "pair", "workers": 0},
        },
        "ema": 0.5,
        "eval": {"data": "", "every": 2, "held_out": 0.1, "pairs": 4, "pictures": 0},
        "init": "",
        "keep_checkpoints": 2,
        "keep_every": 0,
        "log_every": 1,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "model": SIZES | {"class_token": False, "mask_ratio": 0.9, "norm_pix_loss": True, "positions": "rope100"},
        "objective": "croco",
        "on_nonfinite": "stop",
        "optimizer": {
            **{"b1": 0.9, "b2": 0.95, "base_learning_rate": 0.016, "clip_norm": 0.0},
            **{"schedule_steps": 4, "warmup_steps": 1, "weight_decay": 0.05},
        },
        "remat": "blocks",
        "scan_layers": True,
        "seed": 0,
        "skip_at_most": 10,
        "steps": 4,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset, and the workdir of an uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "pairs", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(11)])
    loop.train(config_of(folder / "pairs"), folder / "run", make_task)
    return folder


@pytest.fixture
def old(whole, tmp_path):
    """The workdir of the same run as it was after two steps, in the old layout."""
    shutil.copytree(whole / "run", tmp_path / "now")
    shutil.rmtree(tmp_path / "now" / "checkpoints" / "4")
    run = open_run(config_of(whole / "pairs"), tmp_path / "now", make_task)
    with Checkpoints(run) as checkpoints:
        state, step = checkpoints.restore(run.setup.shapes)
    assert step == 2
    workdir = tmp_path / "old"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(old_config(whole / "pairs"), indent=2))
    shutil.copy(whole / "run" / "data.json", workdir)
    lines = (whole / "run" / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= 2))
    optimizer = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    optimizer["nonfinite_step"] = jnp.zeros((), jnp.int32)
    items = {"params": state.params, "optimizer": optimizer, "average": state.ema_params}
    position = {"step": 2, "dataset": run.source.fingerprint}
    position["checksums"] = {name: int(checksum(item)) for name, item in items.items()}
    saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    saved |= {"data": ocp.args.JsonSave(position), "config": ocp.args.JsonSave(old_config(whole / "pairs"))}
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        manager.save(2, args=ocp.args.Composite(**saved))
    return workdir


def test_it_resumes_to_the_very_parameters(whole, old):
    loop.train(config_of(whole / "pairs"), old, make_task)
    expected, found = (read_params(each / "checkpoints" / "4") for each in (whole / "run", old))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    numbers = [
        [line.get("loss", line.get("evaluation")) for line in map(json.loads, text.splitlines())]
        for text in ((each / "metrics.jsonl").read_text() for each in (whole / "run", old))
    ]
    assert numbers[0] == numbers[1]
    assert (old / "model.json").read_text() == (whole / "run" / "model.json").read_text()


def test_its_model_is_loaded(whole, old):
    trained, weights = load_trained(old), load(old)
    assert (trained.step, trained.task.name) == (2, "completion (croco)")
    assert trained.config.run.remat == "full"
    expected = read_params(whole / "run" / "checkpoints" / "2")
    jax.tree.map(np.testing.assert_array_equal, trained.values, expected)
    jax.tree.map(np.testing.assert_array_equal, weights.params, expected)
    assert weights.sizes == trained.task.backbone.sizes
    evaluations = trained.task.evaluations(str(whole / "pairs"), 4)(trained.model, None)
    assert np.isfinite(evaluations["completion"].run(trained.values).numbers["error"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"config\.seed=0 \(now 1\)"),
        ({"data.swap": 0.25}, r"config\.data\.swap=0\.5 \(now 0\.25\)"),
        ({"optimizer.end_learning_rate": 0.5}, r"config\.optimizer\.end_learning_rate=0\.0 \(now 0\.5\)"),
        ({"optimizer.total_steps": 5}, r"config\.optimizer\.total_steps=4 \(now 5\)"),
        ({"residual_dtype": "bfloat16"}, r"config\.residual_dtype='float32' \(now 'bfloat16'\)"),
        ({"model.encoder_heads": 1}, r"config\.model\.encoder_heads=2 \(now 1\)"),
    ],
)
def test_another_config_is_refused(whole, old, changes, message):
    with pytest.raises(InputError, match=rf"config\.json: made with {message}; give the former"):
        loop.train(config_of(whole / "pairs", **changes), old, make_task)
