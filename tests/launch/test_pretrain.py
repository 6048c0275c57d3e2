"""Pre-training from the command line: real processes, really killed."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.datasets import make_pair, write_dataset

ROOT = Path(__file__).parents[2]
SMALL = {
    "steps": 40,
    "batch_size": 4,
    "log_every": 2,
    "checkpoint_every": 5,
    "model.encoder_width": 16,
    "model.encoder_depth": 1,
    "model.encoder_heads": 2,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "data.size": 20,
    "data.crop": 16,
    "optimizer.warmup_steps": 5,
    "eval.every": 0,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(folder, [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(11)])
    return folder


def command(dataset, workdir, **changes):
    fields = SMALL | {"data.train": dataset} | {name.replace("__", "."): value for name, value in changes.items()}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "-m", "launch.pretrain", "--config=configs/croco_tiny.py", f"--workdir={workdir}", *options]


def pretrain(dataset, workdir, **changes):
    return subprocess.run(command(dataset, workdir, **changes), cwd=ROOT, capture_output=True, text=True, timeout=300)


def parameters(workdir, step):
    found = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "params").absolute())
    return {jax_path: np.asarray(leaf) for jax_path, leaf in _flatten(found)}


def _flatten(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = pretrain(dataset, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_run_leaves_what_the_design_says(uninterrupted):
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == ["35", "40"]
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["steps"] == config["optimizer"]["schedule_steps"] == 40
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({1, *range(2, 41, 2), *range(5, 41, 5)})
    # The rate logged at a step is the one that its update used: warm-up from zero, the cosine's end at step 40.
    peak = 1.6e-2 * 4 / 256
    np.testing.assert_allclose(lines[1]["learning_rate"], peak * 1 / 5, rtol=1e-5)
    np.testing.assert_allclose(lines[-1]["learning_rate"], peak * 0.5 * (1 + np.cos(np.pi * 34 / 35)), rtol=1e-4)
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_killed_and_restarted_it_ends_bit_identical(dataset, uninterrupted, tmp_path):
    workdir = tmp_path / "killed"
    kills = 0
    for first_step in (5, 20):
        process = subprocess.Popen(
            command(dataset, workdir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            steps = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
            if max(steps, default=0) >= first_step:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2, "the run ended before it could be killed"
    done = pretrain(dataset, workdir)
    assert done.returncode == 0, done.stderr

    expected, found = parameters(uninterrupted, 40), parameters(workdir, 40)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    losses = [
        [(line["step"], line["loss"]) for line in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())]
        for path in (uninterrupted, workdir)
    ]
    assert losses[0] == losses[1], "each step is logged once, with the same loss"


def test_a_finished_run_says_so(dataset, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    done = pretrain(dataset, uninterrupted, log_every=7)
    assert done.returncode == 0
    assert "already trained for 40 steps" in done.stdout
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert all(re.search(word, lines[0]) for word in words), lines[0]


def test_bad_input_gets_one_clear_line(dataset, uninterrupted, tmp_path):
    refused(pretrain(dataset, uninterrupted, seed=1), r"config\.json", r"config\.seed=0 \(now 1\)")
    refused(pretrain(dataset, dataset), "holds other things")
    fields = r"error: --config\.stepz: the config has no such field$", r"error: --config\.optimizer\.lr: the config"
    refused(pretrain(dataset, tmp_path, stepz=1), fields[0])
    refused(pretrain(dataset, tmp_path, optimizer__lr=1), fields[1])
    refused(pretrain(dataset, tmp_path, steps="many"), "steps", "many")
    refused(pretrain(dataset, tmp_path, model__encoder_heads=3), r"config\.model", "encoder_width 16")
    refused(pretrain(dataset, tmp_path, data__crop=18), r"config\.data\.crop=18")
    refused(pretrain(dataset, tmp_path, steps=5), r"warmup_steps=5 must be below", r"schedule_steps=5")
    refused(pretrain(dataset, tmp_path, objective="dino"), r"config\.objective='dino' is none of")
    refused(pretrain(dataset, tmp_path, objective="mae"), r"config\.data\.views='pair'", "'first' or 'both'")
    refused(pretrain(dataset, tmp_path, init="absent.pth"), r"absent\.pth: no such file")
    refused(pretrain(dataset, tmp_path, eval__held_out=1.0), r"config\.eval\.held_out=1\.0")
    refused(pretrain(f"{dataset},{dataset}", tmp_path), r"config\.data\.train: .* is given twice")
    refused(pretrain(dataset, tmp_path, batch_size=0), r"config\.batch_size=0")
    refused(pretrain(dataset, tmp_path, mesh__data=7), r"config\.mesh")
    refused(pretrain("", tmp_path), r"config\.data\.train is not set")
    refused(pretrain(tmp_path / "absent", tmp_path), "absent: no such dataset folder")
    refused(pretrain(dataset, tmp_path, seed=-1), r"config\.seed=-1")
    refused(pretrain(dataset, tmp_path, compute_dtype="int8"), r"config\.compute_dtype='int8'")
    refused(pretrain(dataset, tmp_path, model__mask_ratio=0.001), r"config\.model\.mask_ratio=0.001")
    assert not list(tmp_path.iterdir()), "a config that cannot be used must not claim the workdir"
    occupied = tmp_path / "file"
    occupied.write_text("")
    refused(pretrain(dataset, occupied), "--workdir=.*file")


def test_a_loss_that_is_not_finite_stops_the_run_for_good(dataset, tmp_path):
    diverging = {"optimizer__base_learning_rate": 1e30, "steps": 20, "checkpoint_every": 20}
    for _ in range(2):
        refused(pretrain(dataset, tmp_path / "run", **diverging), "loss is", "base_learning_rate")
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]


def test_a_dataset_that_has_changed_is_refused(dataset, tmp_path):
    folder, workdir = tmp_path / "pairs", tmp_path / "run"
    shutil.copytree(dataset, folder)
    assert pretrain(folder, workdir, steps=10).returncode == 0
    shutil.rmtree(folder)
    write_dataset(folder, [make_pair(seed) for seed in range(12)])
    refused(pretrain(folder, workdir, steps=10), r"checkpoints/10", "has changed")


def test_damaged_files_get_one_clear_line(dataset, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    shutil.rmtree(workdir / "checkpoints" / "40")
    metrics.write_text("".join([*lines[:3], "{damaged\n", *lines[4:]]))
    refused(pretrain(dataset, workdir), r"metrics\.jsonl: line 4 is damaged")
    for path in (workdir / "checkpoints" / "35" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    metrics.write_text("")
    refused(pretrain(dataset, workdir), r"checkpoints/35: this checkpoint cannot be read")
    (workdir / "config.json").write_text("[]")
    refused(pretrain(dataset, workdir), r"config\.json: is damaged")

    cut = tmp_path / "cut"
    shutil.copytree(dataset, cut)
    shard = sorted(cut.glob("*array_record*"))[0]
    shard.write_bytes(shard.read_bytes()[:-2000])
    refused(pretrain(cut, tmp_path / "other"), "00000-of-00002: this shard is damaged")

    config = tmp_path / "config.py"
    config.write_text("def get_config(:\n")
    done = subprocess.run(
        [sys.executable, "-m", "launch.pretrain", f"--config={config}", "--workdir=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    refused(done, "SyntaxError", r"config\.py, line 1")


def test_bad_flags_get_one_clear_line(dataset):
    run = lambda *flags: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "launch.pretrain", *flags], cwd=ROOT, capture_output=True, text=True
    )
    refused(run("--config=configs/absent.py", "--workdir=x"), "absent.py")
    refused(run("--workdir=x"), "error: --config is not set")
    refused(run("--workdir=x", "--config.data.train=pairs"), "error: --config is not set")
    refused(run("--config=configs/croco_tiny.py"), "error: --workdir is not set")
    refused(
        run("--config=configs/mimic_mae_vitb.py:2m", "--workdir=x"),
        r"^error: --config=configs/mimic_mae_vitb\.py:2m: ValueError: mimic_mae_vitb\.py:2m must end in :1m or :3m",
    )
    refused(run("--config=configs/croco_tiny.py", "--workdir=x", "--nonsense=1"), "nonsense")
    refused(run("--config=configs/croco_tiny.py", "--workdir=x", "stray"), "stray")
    help = run("--help")
    assert "--workdir" in help.stdout
    assert "python -m launch.pretrain" in help.stdout
