"""Runs that are stopped, killed, damaged or out of room lose nothing, and end the same, bit for bit."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from configs.croco_tiny import get_config
from mimic_jax.data.mixture import hold_out, open_mixture
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.pairs import read_pairs
from tests import commands
from tests.datasets import make_pair, write_dataset
from tests.launch.training import (
    assert_bit_identical,
    evaluations,
    flip_a_bit,
    losses,
    metrics,
    pretrain,
    start,
    steps,
    wait_for_step,
)
from tests.processes import wait_for


def test_sigterm_saves_and_the_same_command_carries_on(tiny_pairs, uninterrupted, tmp_path):
    # Traced too: what began before the stop is over after it. Evaluations leave time to stop it in.
    changes = {"run__checkpoint_every": 1000} | evaluations(2, pictures=0)
    process = start(tiny_pairs, tmp_path / "run", "--profile=3:38", **changes)
    wait_for_step(tmp_path / "run", 6, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    (stopped,) = steps(tmp_path / "run")
    assert 6 <= stopped < 40
    assert f"SIGTERM: step {stopped} is saved; the same command resumes from there" in out
    assert metrics(tmp_path / "run")[-1]["step"] == stopped
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    done = pretrain(tiny_pairs, tmp_path / "run", "--profile=3:38", **changes)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped}" in done.stdout
    assert_bit_identical(tmp_path / "run", uninterrupted)
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [each["step"] for each in starts] == [0, stopped]
    assert starts[0]["packages"]["numpy"] == np.__version__


def test_sigterm_before_the_first_step_ends_it_as_well(tiny_pairs, tmp_path):
    process = start(tiny_pairs, tmp_path / "run")
    wait_for((tmp_path / "run" / "config.json").exists, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert re.search("SIGTERM: .*; the same command carries on", out)


def test_ctrl_c_saves_too(tiny_pairs, tmp_path):
    process = start(tiny_pairs, tmp_path / "run", steps=100_000, run__checkpoint_every=100_000)
    wait_for_step(tmp_path / "run", 6, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "carries on from here" in err
    assert "Traceback" not in err
    assert len(steps(tmp_path / "run")) == 1


def test_killed_and_restarted_it_ends_bit_identical(tiny_pairs, uninterrupted, tmp_path):
    kills = 0
    for first_step in (5, 20):
        process = start(tiny_pairs, tmp_path / "run")
        wait_for_step(tmp_path / "run", first_step, process)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2, "the run ended before it could be killed"
    done = pretrain(tiny_pairs, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_bit_identical(tmp_path / "run", uninterrupted)
    assert losses(tmp_path / "run") == losses(uninterrupted)
    lines = [line["step"] for line in metrics(tmp_path / "run")]
    assert lines == sorted(set(lines)), "each step is logged once"


def test_killed_on_a_mesh_it_ends_bit_identical(tiny_pairs, tmp_path):
    """Where gradients are summed over devices, and parameters gathered from them."""
    mesh = {"devices": 2, "run__mesh__data": 1, "run__mesh__fsdp": 2, "steps": 20}
    process = start(tiny_pairs, tmp_path / "run", **mesh)
    wait_for_step(tmp_path / "run", 8, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for workdir in (tmp_path / "run", tmp_path / "whole"):
        done = pretrain(tiny_pairs, workdir, **mesh)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert_bit_identical(tmp_path / "run", tmp_path / "whole", 20)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tiny_pairs, uninterrupted, tmp_path):
    """Saving after every step, most moments are during a save."""
    rng = random.Random(0)
    for _ in range(20):
        process = start(tiny_pairs, tmp_path / "run", run__checkpoint_every=1, run__keep_checkpoints=3)
        wait_for_step(tmp_path / "run", max(losses(tmp_path / "run"), default=0) + 1, process)
        try:
            process.wait(rng.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    done = pretrain(tiny_pairs, tmp_path / "run", run__checkpoint_every=1)
    assert done.returncode == 0, done.stderr
    assert_bit_identical(tmp_path / "run", uninterrupted)


def cut_short(checkpoint, pattern="*"):
    for path in (checkpoint / "params").rglob(pattern):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def cut_arrays_short(checkpoint):
    """So that all is found, and one array after the other fails to read."""
    cut_short(checkpoint, "d/*")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, cut_arrays_short])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tiny_pairs, uninterrupted, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    damage(workdir / "checkpoints" / "40")
    done = pretrain(tiny_pairs, workdir)
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: .*checkpoints/40: this checkpoint is damaged .* moved to .*damaged/40", done.stdout)
    assert "resuming from step 35" in done.stdout
    assert (workdir / "damaged" / "40" / "params").is_dir()
    assert "Traceback" not in done.stderr
    assert_bit_identical(workdir, uninterrupted)


def test_a_damaged_checkpoint_is_one_line_where_weights_are_loaded(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    cut_arrays_short(tmp_path / "run" / "checkpoints" / "40")
    weights, output = tmp_path / "run", tmp_path / "model.safetensors"
    done = commands.run(["launch.export", f"--weights={weights}", "--format=safetensors", f"--output={output}"])
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*/40: this checkpoint cannot be read \(.*\); give another step\n", done.stderr)


def test_a_checkpoint_that_the_system_does_not_read_now_is_not_set_aside(tiny_pairs, uninterrupted, tmp_path):
    """Its files are links to themselves, which the system refuses to open, as it does those of a disk that is away."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    params = workdir / "checkpoints" / "40" / "params"
    shutil.copytree(params, tmp_path / "whole")
    for path in params.rglob("d/*"):
        path.unlink()
        path.symlink_to(path.name)
    done = pretrain(tiny_pairs, workdir)
    assert done.returncode == 75
    assert re.fullmatch(r"error: .*/40: this checkpoint cannot be read .*; nothing of it was changed.*\n", done.stderr)
    assert "Too many levels of symbolic links" in done.stderr
    shutil.rmtree(params)
    (tmp_path / "whole").rename(params)
    done = pretrain(tiny_pairs, workdir)
    assert (done.returncode, "already trained for 40 steps" in done.stdout) == (0, True), done.stderr


def test_a_record_that_goes_bad_costs_no_step(tiny_pairs, uninterrupted, tmp_path):
    """The last of an epoch's pairs; once the dataset is mended the run ends as if nothing had been."""
    examples, _ = hold_out(open_mixture(str(tiny_pairs), "data"), get_config().data.holdout_fraction)
    options = {"lengths": examples.lengths(), "weights": None, "batch_size": 4, "seed": 0}
    order = [index for step in range(3) for index in examples_in_step(step, **options).tolist()]
    index = list(dict.fromkeys(order))[-1]
    done_before = order.index(index) // 4
    (bad,) = read_pairs(examples, [index])
    pairs = [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(11)]
    pairs[bad.frame1] = dataclasses.replace(bad, view1=bytes(len(bad.view1)))
    write_dataset(tmp_path / "damaged", pairs)
    done = pretrain(tmp_path / "damaged", tmp_path / "run")
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert f"; step {done_before} is saved, the same command resumes from it" in done.stderr
    assert steps(tmp_path / "run") == [done_before] != [0]
    done = pretrain(tiny_pairs, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_bit_identical(tmp_path / "run", uninterrupted)


def test_an_evaluation_that_a_stop_left_out_is_made_up(tiny_pairs, uninterrupted, tmp_path):
    """Of a run that was killed after its last checkpoint, and before what follows it; and of one that never had any."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    evaluated = evaluations(20, pictures=0)
    first = pretrain(tiny_pairs, workdir, **evaluated)
    assert first.returncode == 0, first.stderr
    path = workdir / "metrics.jsonl"
    *before, last = path.read_text().splitlines(True)
    assert json.loads(last)["step"] == 40
    assert json.loads(last)["evaluation"]["error"] > 0
    path.write_text("".join(before))
    again = pretrain(tiny_pairs, workdir, "--profile=100:110", **evaluated)
    assert again.returncode == 0, again.stderr
    assert path.read_text() == "".join([*before, last])
    assert "warning: --profile=100:110: no trace is made, as no step is left" in again.stdout
    assert "already trained for 40 steps" in pretrain(tiny_pairs, workdir, **evaluated).stdout


def test_where_all_checkpoints_are_damaged_nothing_starts_anew(tiny_pairs, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    for step in (35, 40):
        cut_short(workdir / "checkpoints" / str(step))
    for _ in range(2):
        done = pretrain(tiny_pairs, workdir)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .*checkpoints/35: this checkpoint is damaged .* none before it.*\n", done.stderr)


def test_the_newest_and_every_nth_checkpoint_are_kept(tiny_pairs, tmp_path):
    done = pretrain(tiny_pairs, tmp_path / "run", run__keep_checkpoints=2, run__keep_every=15)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path / "run") == [15, 30, 35, 40]


def test_a_full_disk_gets_one_line_and_loses_nothing(tiny_pairs, uninterrupted, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be made here: mount needs root")
    try:
        done = pretrain(tiny_pairs, disk / "run")
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if "UserWarning" not in line and "warnings.warn" not in line]
        assert len(lines) == 1, done.stderr
        assert re.search(r"disk/run: cannot be written \(No space left\)", lines[0])
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        done = pretrain(tiny_pairs, disk / "run")
        assert done.returncode == 0, done.stderr
        assert_bit_identical(disk / "run", uninterrupted)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_on_another_mesh_it_carries_on(tiny_pairs, uninterrupted, tmp_path):
    """From four devices that hold a quarter of the state each, to one."""
    workdir = tmp_path / "run"
    # The number of steps belongs to the config: it is stopped as a user would.
    process = start(tiny_pairs, workdir, devices=4, run__mesh__data=1, run__mesh__fsdp=4)
    wait_for_step(workdir, 10, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert steps(workdir)[-1] < 40
    done = pretrain(tiny_pairs, workdir)
    assert done.returncode == 0, done.stderr
    found, expected = losses(workdir), losses(uninterrupted)
    assert max(found) == 40
    assert expected.keys() <= found.keys()
    for step in expected:
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-5, err_msg=str(step))
    starts = json.loads((workdir / "environment.json").read_text())
    assert [each["mesh"]["fsdp"] for each in starts] == [4, 1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_that_cannot_be_written_is_named(tiny_pairs, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    done = pretrain(tiny_pairs, tmp_path / "closed" / "run")
    assert done.returncode == 2
    assert re.search(r"error: --workdir=.*closed/run cannot be written", done.stderr)
