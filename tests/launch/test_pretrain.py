"""Pre-training from the command line: what a run leaves, and what it says of mistakes."""

import fcntl
import json
import re
import shutil
import subprocess
import sys

import numpy as np

from tests.datasets import make_pair, write_dataset
from tests.launch.training import ROOT, pretrain


def test_a_run_leaves_what_the_design_says(uninterrupted):
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == ["35", "40"]
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["steps"] == config["optimizer"]["total_steps"] == 40
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({1, *range(2, 41, 2), *range(5, 41, 5)})
    # The rate logged at a step is the one that its update used: warm-up from zero, the cosine's end at step 40.
    peak = 1.6e-2 * 4 / 256
    np.testing.assert_allclose(lines[1]["learning_rate"], peak * 1 / 5, rtol=1e-5)
    np.testing.assert_allclose(lines[-1]["learning_rate"], peak * 0.5 * (1 + np.cos(np.pi * 34 / 35)), rtol=1e-4)
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_a_finished_run_says_so(tiny_pairs, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    done = pretrain(tiny_pairs, uninterrupted, run__log_every=7)
    assert done.returncode == 0
    assert "already trained for 40 steps" in done.stdout
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert all(re.search(word, lines[0]) for word in words), lines[0]


def test_bad_input_gets_one_clear_line(tiny_pairs, uninterrupted, tmp_path):
    refused(pretrain(tiny_pairs, uninterrupted, seed=1), r"config\.json", r"config\.seed=0 \(now 1\)")
    refused(pretrain(tiny_pairs, tiny_pairs), "is not empty and has no config.json")
    with (uninterrupted / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = pretrain(tiny_pairs, uninterrupted)
        assert (done.returncode, "another run is at work here" in done.stderr) == (75, True), done.stderr
    refused(pretrain(tiny_pairs, "gs://bucket/run"), r"--workdir=gs://bucket/run must be a folder")
    fields = r"error: --config\.stepz: the config has no such field$", r"error: --config\.optimizer\.lr: the config"
    refused(pretrain(tiny_pairs, tmp_path, stepz=1), fields[0])
    refused(pretrain(tiny_pairs, tmp_path, optimizer__lr=1), fields[1])
    refused(pretrain(tiny_pairs, tmp_path, steps="many"), "steps", "many")
    refused(pretrain(tiny_pairs, tmp_path, model__encoder_heads=3), r"config\.model", "encoder_width 16")
    refused(pretrain(tiny_pairs, tmp_path, data__crop=18), r"config\.data\.crop=18")
    refused(pretrain(tiny_pairs, tmp_path, steps=5), r"warmup_steps=5 must be below", r"total_steps=5")
    refused(pretrain(tiny_pairs, tmp_path, model__kind="dino"), r"config\.model\.kind='dino' must be 'croco' or 'mae'")
    refused(pretrain(tiny_pairs, tmp_path, model__kind="mae"), r"config\.data\.views='pair'", "'first' or 'both'")
    refused(pretrain(tiny_pairs, tmp_path, init="absent.pth"), r"absent\.pth: no such file")
    refused(
        pretrain(tiny_pairs, tmp_path, data__holdout_fraction=1.0),
        r"config\.data\.holdout_fraction=1\.0 must be at least 0, below 1",
    )
    refused(pretrain(f"{tiny_pairs},{tiny_pairs}", tmp_path), r"config\.data\.train: .* is given twice")
    refused(pretrain(tiny_pairs, tmp_path, batch_size=0), r"config\.batch_size=0")
    refused(pretrain(tiny_pairs, tmp_path, run__mesh__data=7), r"config\.run\.mesh")
    refused(pretrain("", tmp_path), r"config\.data\.train is not set")
    refused(pretrain(tmp_path / "absent", tmp_path), "absent: no such dataset folder")
    refused(pretrain(tiny_pairs, tmp_path, seed=-1), r"config\.seed=-1")
    refused(pretrain(tiny_pairs, tmp_path, compute_dtype="int8"), r"config\.compute_dtype='int8'")
    refused(pretrain(tiny_pairs, tmp_path, model__mask_ratio=0.001), r"config\.model\.mask_ratio=0.001")
    assert not list(tmp_path.iterdir()), "a config that cannot be used must not claim the workdir"
    occupied = tmp_path / "file"
    occupied.write_text("")
    refused(pretrain(tiny_pairs, occupied), "--workdir=.*file")


def test_a_loss_that_is_not_finite_stops_the_run_for_good(tiny_pairs, tmp_path):
    diverging = {"optimizer__base_learning_rate": 1e30, "steps": 20, "run__checkpoint_every": 20}
    for _ in range(2):
        done = pretrain(tiny_pairs, tmp_path / "run", **diverging)
        refused(
            done,
            "at step 3 the loss or its gradient was not finite",
            r"learning rate \(config\.optimizer\)",
            "run.on_nonfinite=skip",
        )
    (found,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert (found["step"], len(found["pairs"])) == (3, 4)
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]


def test_steps_that_are_not_finite_are_left_out_up_to_a_number(tiny_pairs, tmp_path):
    """Each with a warning; a run with more of them than are allowed is not carried on in silence either."""
    diverging = {"optimizer__base_learning_rate": 1e30, "steps": 20, "run__checkpoint_every": 1, "run__log_every": 1}
    done = pretrain(tiny_pairs, tmp_path / "run", run__on_nonfinite="skip", run__max_skipped=2, **diverging)
    told = re.findall(
        r"at step (\d+) the loss or its gradient was not finite.*\(skipped: (\d) of at most 2\)", done.stdout
    )
    assert told == [("3", "1"), ("4", "2")]
    refused(done, "at step 5 the loss", "The newest checkpoint is of step 4", "higher config.run.max_skipped than 2")
    listed = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert [each["step"] for each in listed] == [3, 4, 5]
    refused(
        pretrain(tiny_pairs, tmp_path / "run", **diverging), "2 steps that were not finite have been skipped so far"
    )


def test_a_dataset_that_has_changed_is_refused(tiny_pairs, tmp_path):
    folder, workdir = tmp_path / "pairs", tmp_path / "run"
    shutil.copytree(tiny_pairs, folder)
    assert pretrain(folder, workdir, steps=10).returncode == 0
    shutil.rmtree(folder)
    write_dataset(folder, [make_pair(seed) for seed in range(12)])
    refused(pretrain(folder, workdir, steps=10), r"checkpoints/10", "has changed")


def test_damaged_files_get_one_clear_line(tiny_pairs, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    shutil.rmtree(workdir / "checkpoints" / "40")
    metrics.write_text("".join([*lines[:3], "{damaged\n", *lines[4:]]))
    refused(pretrain(tiny_pairs, workdir), r"metrics\.jsonl: line 4 is damaged")
    (workdir / "config.json").write_text("[]")
    refused(pretrain(tiny_pairs, workdir), r"config\.json: is damaged")

    cut = tmp_path / "cut"
    shutil.copytree(tiny_pairs, cut)
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


def test_bad_flags_get_one_clear_line(tiny_pairs):
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
