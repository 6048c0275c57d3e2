"""Runs side by side: what is told and drawn is what was written into workdirs, by hand and by old versions too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from launch.runs import curves, differences, finished, read_run

ROOT = Path(__file__).parents[2]
CONFIG = {
    "task": "completion",
    "steps": 40,
    "batch_size": 64,
    "ema_decay": 0.0,
    "model": {"kind": "croco", "encoder_width": 128, "encoder_depth": 2, "decoder_width": 96, "decoder_depth": 4},
    "data": {"train": "pairs", "size": [192, 256]},
    "optimizer": {"base_learning_rate": 0.016, "total_steps": 40},
    "run": {"mesh": {"data": -1, "fsdp": 1}, "remat": "full", "accumulation_steps": 1},
}
# The same, as it was written before fields had sections.
OLD = {
    "objective": "croco",
    "steps": 40,
    "batch_size": 64,
    "ema": 0.0,
    "accumulate": 1,
    "remat": "blocks",
    "mesh": {"data": -1, "fsdp": 1},
    "model": {"encoder_width": 128, "encoder_depth": 2, "decoder_width": 96, "decoder_depth": 4},
    "data": {"train": "pairs", "size": [192, 256]},
    "optimizer": {"base_learning_rate": 0.016, "schedule_steps": 40},
}
LINES = [
    {"step": 1, "loss": 2.0, "learning_rate": 0.0, "gradient_norm": 1.0, "pairs_per_second": 10.0, "mfu": 0.1},
    {"step": 20, "loss": 1.25, "learning_rate": 0.01, "gradient_norm": 1.0, "pairs_per_second": 90.0, "mfu": 0.5},
    {"step": 20, "evaluation": {"ratio": 0.75, "error": 0.5, "correspondence_within_1": 0.25, "pairs": 6.0}},
    {"step": 40, "loss": 1.125, "learning_rate": 0.002, "gradient_norm": 1.0, "pairs_per_second": 80.0, "mfu": 0.25},
    {"step": 40, "evaluation": {"ratio": 0.875, "error": 0.375, "correspondence_within_1": 0.5, "pairs": 6.0}},
]
STARTS = [
    {"started": "2026-11-01T10:00:00", "step": 0, "steps": 40, "devices": "8 × H200"},
    {"started": "2026-11-02T11:00:00", "step": 20, "steps": 40, "devices": "16 × H200"},
]


def write(workdir: Path, config=CONFIG, lines=LINES, starts=STARTS, saved=(20, 40)) -> Path:
    for step in saved:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config))
    if lines is not None:
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if starts is not None:
        (workdir / "environment.json").write_text(json.dumps(starts))
    return workdir


def runs(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.runs", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)},
    )


def table(printed: str) -> dict[str, list[str]]:
    """The rows of the printed tables."""
    rows = [
        [cell.strip() for cell in line.strip("│┃").split(line[0])] for line in printed.splitlines() if line[:1] in "│┃"
    ]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write(folder / "whole")
    # Of before a start was written down, and interrupted.
    old = OLD | {
        "batch_size": 128,
        "optimizer": {"base_learning_rate": 0.001, "schedule_steps": 40},
        "data": OLD["data"] | {"jitter": 0.4},
    }
    lines = [{"step": 10, "loss": 1.75, "learning_rate": 0.001, "pairs_per_second": 70.0}]
    write(folder / "old", old, lines, None, saved=(10,))
    (folder / "old" / "checkpoints" / "40.being-written").mkdir()
    write(folder / "begun", lines=None, starts=STARTS[:1], saved=())
    return folder


def test_what_is_printed_is_what_was_written(folder):
    done = runs(folder, "whole", "old", "begun")
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert rows["task"] == ["completion (croco)"] * 3
    assert rows["encoder"] == ["2 layers of 128"] * 3
    assert rows["decoder"] == ["4 layers of 96"] * 3
    assert rows["step"] == ["40 of 40", "10 of 40", "0 of 40"]
    assert rows["saved"] == ["40", "10", "–"]
    assert rows["loss"] == ["1.125", "1.75", "no metrics yet"]
    assert rows["ratio"] == ["0.875 (best 0.75 at step 20)", "–", "–"]
    assert rows["error"] == ["0.375", "–", "–"]
    assert rows["correspondence within 1"] == ["0.5", "–", "–"]
    assert rows["pairs a second"] == ["80.0", "70.0", "–"]
    assert rows["of peak FLOP/s (MFU)"] == ["25.0%", "–", "–"]
    assert rows["first started"] == ["2026-11-01T10:00:00", "–", "2026-11-01T10:00:00"]
    assert rows["on"] == ["16 × H200", "–", "8 × H200"]
    assert rows["starts"] == ["2", "–", "1"]
    # Below, where the configs differ, and no other field.
    assert rows["batch_size"] == ["64", "128", "64"]
    assert rows["optimizer.base_learning_rate"] == ["0.016", "0.001", "0.016"]
    assert rows["data.jitter"] == ["–", "0.4", "–"]
    same = {"model.kind", "ema_decay", "run.accumulation_steps", "run.remat", "run.mesh.fsdp", "optimizer.total_steps"}
    assert not same & rows.keys(), "fields that had other names"
    assert not {"data.train", "data.size", "steps", "model.encoder_width", "psnr", "GiB a chip"} & rows.keys()
    picture = cv2.imread(str(folder / "runs.png"))
    assert picture.shape[1] == 3 * 600, "five quantities are drawn in rows of three"


def test_curves_are_those_of_the_metrics(folder):
    found = curves([read_run(folder / name, name) for name in ("whole", "old", "begun")])
    assert found == {
        "loss": {"whole": ([1, 20, 40], [2.0, 1.25, 1.125]), "old": ([10], [1.75])},
        "learning rate": {"whole": ([1, 20, 40], [0.0, 0.01, 0.002]), "old": ([10], [0.001])},
        "error": {"whole": ([20, 40], [0.5, 0.375])},
        "ratio": {"whole": ([20, 40], [0.75, 0.875])},
        "correspondence within 1": {"whole": ([20, 40], [0.25, 0.5])},
    }


def test_the_newest_start_tells_the_mesh(tmp_path):
    """Which config.json does not: it is of the first. Starts of before have the names of before."""
    starts = [STARTS[0], STARTS[1] | {"config": {"run.mesh.fsdp": 8}}]
    run = read_run(write(tmp_path / "moved", CONFIG, starts=starts), "")
    assert (run.config["run.mesh.fsdp"], run.config["model.encoder_depth"]) == (8, 2)
    starts = [STARTS[0], STARTS[1] | {"config": {"mesh.fsdp": 8, "remat": "blocks"}}]
    run = read_run(write(tmp_path / "moved_before", OLD, starts=starts), "")
    assert (run.config["run.mesh.fsdp"], run.config["run.remat"]) == (8, "full")


def test_differences_are_of_fields_by_value_and_by_presence():
    configs = [{"a.b": 1, "a.c": [1, 2], "d": None}, {"a.b": 1.5, "a.c": [1, 2]}]
    assert differences(configs) == [("a.b", ["1", "1.5"]), ("d", ["null", "–"])]
    assert differences(configs[:1]) == []


def test_one_run_and_runs_of_one_name(folder, tmp_path):
    done = runs(folder, "begun", "--picture=none.png")
    assert done.returncode == 0, done.stderr
    assert "no curves to draw" in done.stdout
    assert not (folder / "none.png").exists()
    other = write(tmp_path / "whole")
    done = runs(folder, "whole", str(other), "--picture=")
    assert "Their configs do not differ." in done.stdout
    # Where the last part of a path does not tell two runs apart, the whole of it is shown.
    assert re.search(rf"whole +┃ {re.escape(str(other))}", done.stdout), done.stdout


def test_whether_runs_are_finished_is_told_by_the_exit_code(folder, tmp_path):
    assert runs(folder, "--finished", "whole").returncode == 0
    done = runs(folder, "--finished", "whole", "old")
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert [finished(folder / name) for name in ("whole", "old", "begun", "absent")] == [True, False, False, False]
    # In epochs, the number of steps is told by the run alone.
    epochs = {name: value for name, value in CONFIG.items() if name != "steps"} | {"steps": None, "epochs": 100}
    write(tmp_path / "epochs", epochs)
    assert finished(tmp_path / "epochs")
    (tmp_path / "epochs" / "checkpoints" / "40").rmdir()
    assert not finished(tmp_path / "epochs")
    (tmp_path / "epochs" / "environment.json").unlink()
    refused(runs(tmp_path, "--finished", "epochs"), "epochs does not tell how many steps it has")


def refused(done: subprocess.CompletedProcess, words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: .*{words}.*\n", done.stderr), done.stderr


def test_bad_input_gets_one_clear_line(folder, tmp_path):
    refused(
        runs(folder, "whole", "absent"),
        r"absent is not a workdir of launch\.pretrain or launch\.finetune: it has no config\.json",
    )
    refused(runs(folder, "whole", "./whole"), "whole is given twice")
    refused(runs(folder), "WORKDIR… missing")
    refused(runs(folder, "whole", "--picture=whole/config.json/x.png"), r"x\.png: cannot be written")
    damaged = write(tmp_path / "damaged")
    (damaged / "environment.json").write_text("{}")
    refused(runs(tmp_path, "damaged"), r"environment\.json: is damaged")
    (damaged / "metrics.jsonl").write_text("{\n")
    refused(runs(tmp_path, "damaged"), r"metrics\.jsonl: line 1 is damaged")
