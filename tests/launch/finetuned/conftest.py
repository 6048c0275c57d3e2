"""A tiny pre-trained encoder, a labelled dataset, and one fine-tuning of each task, for all commands that follow."""

import pytest

from tests import commands
from tests.datasets import make_pair, write_dataset
from tests.labelled import finetune, write_labelled

PRETRAINING = {
    "steps": 2,
    "batch_size": 4,
    "run.log_every": 2,
    "run.checkpoint_every": 2,
    "data.size": 20,
    "data.crop": 16,
    "data.holdout_fraction": 0,
    "optimizer.warmup_steps": 1,
    "evals.completion.every": 0,
    "evals.correspondence.every": 0,
    "model.encoder_width": 16,
    "model.encoder_depth": 2,
    "model.encoder_heads": 2,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "model.patch_size": 8,
}


@pytest.fixture(scope="session")
def rooms(tmp_path_factory):
    """14 labelled images in four scenes."""
    return write_labelled(tmp_path_factory.mktemp("data") / "rooms", 14)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The workdir of a CroCo."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_dataset(folder / "pairs", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(8)])
    fields = PRETRAINING | {"data.train": folder / "pairs"}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    done = commands.run(["launch.pretrain", "--config=configs/croco_tiny.py", f"--workdir={folder / 'run'}", *options])
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def depth_run(rooms, pretrained, tmp_path_factory):
    """The workdir of a depth model with a DPT head; evaluated at steps 4, 8 and 12."""
    workdir = tmp_path_factory.mktemp("depth") / "run"
    done = finetune("depth", rooms, workdir, init=pretrained, depth__head="dpt", evals__depth__every=4)
    assert done.returncode == 0, done.stderr
    workdir.with_name("said").write_text(done.stdout)
    return workdir


@pytest.fixture(scope="session")
def normals_run(rooms, pretrained, tmp_path_factory):
    """The workdir of a normals model with a linear head."""
    workdir = tmp_path_factory.mktemp("normals") / "run"
    done = finetune("normals", rooms, workdir, init=pretrained, evals__normals__every=12)
    assert done.returncode == 0, done.stderr
    return workdir
