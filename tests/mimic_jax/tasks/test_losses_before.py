"""Pre-training computes the losses that it computed before tasks had an interface of their own.

`losses_before.json` has the losses of the first 20 steps of each config, recorded at commit 63e3482 in float32 with
the sizes and data below (objective for model.kind, eval.held_out = 0, optimizer.schedule_steps = 20).
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from mimic_jax.tasks import make_task
from mimic_jax.training import loop
from tests.datasets import make_pair, write_dataset

BEFORE = json.loads((Path(__file__).parent / "losses_before.json").read_text())
SIZES = {"encoder_width": 16, "encoder_depth": 2, "encoder_heads": 2}
SIZES |= {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2, "patch_size": 8}
# A CroCo with rotary positions, and an MAE on both views; the others take as long.
QUICK = ("croco_tiny", "mimic_mae_vitb")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(folder, [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(24)])
    return folder


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BEFORE]
)
def test_losses_are_those_of_before(dataset, tmp_path, name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.update(SIZES)
    config.data.update(train=str(dataset), size=40, crop=32, holdout_fraction=0.0)
    config.batch_size, config.steps = 8, 20
    config.compute_dtype = config.residual_dtype = "float32"
    config.evals.completion.every = config.evals.correspondence.every = 0
    config.optimizer.update(base_learning_rate=0.03, warmup_steps=5, total_steps=20)
    config.run.update(log_every=1, checkpoint_every=100)
    loop.train(config, tmp_path, make_task)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    np.testing.assert_allclose([line["loss"] for line in lines], BEFORE[name], rtol=1e-5)
