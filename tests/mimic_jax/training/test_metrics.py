"""The metrics of a run: where they are written, and the table at its end."""

import json
import time

import pytest

from mimic_jax.metrics_file import read_metrics
from mimic_jax.training.metrics import Metrics
from mimic_jax.training.progress import summary


def test_weights_and_biases_gets_the_same_numbers(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases' package is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics = Metrics(tmp_path, 0, project="mimic", config={"task": "croco"})
    metrics.write(3, {"loss": 0.123456789})
    metrics.write_evaluation(3, {"ratio": 0.876})
    metrics.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    words = b"train/loss", b"0.123456789", b"evaluation/ratio", b"0.876", b"croco"
    deadline = time.monotonic() + 30  # a process of its own writes it
    while (missing := [word for word in words if word not in file.read_bytes()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert missing == []
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_what_a_lost_run_wrote_beyond_its_checkpoint_is_dropped(tmp_path):
    lines = [{"step": step, "loss": 1.0} for step in (1, 5, 6, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "lo')
    Metrics(tmp_path, 6).close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 5, 6]


def test_the_table_at_the_end():
    speeds = [5.0, 90.0, 100.0, 400.0]  # the first has the compilation in it
    lines = [
        {
            "step": step,
            "loss": 2.0 - step / 10,
            "pairs_per_second": speed,
            "mfu": 0.5,
            "input_stall": 0.25,
            "skipped": 3,
        }
        for step, speed in enumerate(speeds, start=1)
    ]
    lines.append({"step": 4, "evaluation": {"ratio": 0.75, "pairs": 8}})
    table = summary(lines, first_step=0, unit="pairs")
    shown = dict(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert shown == {
        "steps": "4",
        "loss": "1.9000 at step 1, 1.6000 at the end",
        "ratio": "0.75",
        "pairs": "8",
        "pairs per second, median": "100.0",
        "MFU, median": "50.0%",
        "input stall, median": "25.0%",
        "steps skipped, not finite": "3",
    }
