"""`python -m launch.plan` of a fine-tuning: sizes by name or from weights, and one line where there are none."""

import subprocess
import sys

import pytest

from tests.commands import ROOT
from tests.labelled import HEAD

SMALL = {"batch_size": 2, "data.size": 40, "data.crop": 32} | {f"depth.{name}": value for name, value in HEAD.items()}
ENCODER = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "patch_size": 8}


def plan(config, **fields):
    options = [f"--config.{name.replace('__', '.')}={value}" for name, value in (SMALL | fields).items()]
    words = ["launch.plan", f"--config={config}", "--topology=cpu:2", *options]
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)


def test_a_named_encoder_with_changed_sizes():
    done = plan("configs/finetune/depth.py:vit_b", **{f"model__{name}": value for name, value in ENCODER.items()})
    assert done.returncode == 0, done.stderr
    assert "cpu:2: 2 ×" in done.stdout
    assert "data 2, fsdp 1, tensor 1" in done.stdout


@pytest.mark.slow
def test_an_encoder_of_weights(pretrained):
    done = plan("configs/finetune/depth.py", init=pretrained)
    assert done.returncode == 0, done.stderr
    assert "data 2, fsdp 1, tensor 1" in done.stdout


def test_without_sizes_it_says_what_to_give():
    done = plan("configs/finetune/depth.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: config.model.encoder_width is not set: give --config.model.encoder_width=…")
    assert "--config.init=WEIGHTS" in done.stderr
