"""The command: the same bytes whatever the workers and the kills, and one line for each mistake."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.worlds import filming
from mimic_jax import records
from tests import commands

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four films; three are copies of the first with other poses, as only their bytes matter here."""
    folder = tmp_path_factory.mktemp("in") / "films"
    filming.film_scene(folder, 0, filming.Settings(frames=12, size=64, ground_truth=True))
    shutil.rmtree(folder / filming.DRAFTS)
    with np.load(folder / "room_0000.npz") as record:
        truth = dict(record)
    for number in range(1, 4):
        shutil.copy(folder / "room_0000.mp4", folder / f"room_000{number}.mp4")
        np.savez(folder / f"room_000{number}.npz", **truth | {"depth": truth["depth"] + number})
    return folder


def run(*arguments):
    return commands.run(["data_prep.label", *arguments])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def labelled(films):
    output = films.parent / "labelled"
    done = run(f"--input={films}", f"--output={output}", "--every=4", "--workers=2", "--shards=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "images kept" in done.stdout
    return output


def test_the_dataset_is_whole_and_counted(labelled):
    opened = records.open_dataset(labelled, kinds=("images",))
    assert (len(opened), len(opened.shards)) == (12, 2)
    manifest = opened.manifest()
    assert manifest["kind"] == "images"
    assert list(manifest["scenes"]) == [f"room_000{number}" for number in range(4)]
    for entry in manifest["scenes"].values():
        assert (entry["frames_read"], entry["tried"], entry["kept"]) == (3, 3, 3)
    assert {path.name for path in labelled.iterdir()} == {
        "features.json", "dataset_info.json", "digests.json", "manifest.json", *(shard.name for shard in opened.shards)
    }  # fmt: skip


def test_workers_and_kills_change_nothing(labelled, films, tmp_path):
    output = tmp_path / "labelled"
    arguments = f"--input={films}", f"--output={output}", "--every=4", "--shards=2"
    for signal_number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [sys.executable, "-m", "data_prep.label", *arguments, "--workers=1"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        before = len(list(output.glob(".parts/*.part")))
        while process.poll() is None and len(list(output.glob(".parts/*.part"))) <= before:
            time.sleep(0.005)
        os.kill(process.pid, signal_number)
        _, err = process.communicate(timeout=60)
        # Where it had ended already, there was nothing to kill: the bytes below are compared anyway.
        assert process.returncode in (code, 0), err
        assert "Traceback" not in err
    done = run(*arguments, "--workers=2")
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(labelled)


def test_new_films_are_added_and_a_finished_dataset_is_left_alone(labelled, films, tmp_path):
    few, output = tmp_path / "films", tmp_path / "out"
    few.mkdir()
    for number in (2, 0):
        for suffix in (".mp4", ".npz"):
            shutil.copy(films / f"room_000{number}{suffix}", few)
    arguments = f"--input={few}", f"--output={output}", "--every=4", "--shards=2"
    assert run(*arguments).returncode == 0
    again = run(*arguments)
    assert "already done" in again.stderr
    for number in (1, 3):
        for suffix in (".mp4", ".npz"):
            shutil.copy(films / f"room_000{number}{suffix}", few)
    assert run(*arguments).returncode == 0
    assert contents(output) == contents(labelled)


def test_each_mistake_is_one_line(labelled, films, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    fine = f"--input={films}", f"--output={tmp_path / 'out'}"
    for arguments, words in [
        ([fine[1]], "--input is missing"),
        ([fine[0]], "--output is missing"),
        ([fine[1], f"--input={tmp_path / 'absent'}"], "no such file or folder"),
        ([fine[1], f"--input={tmp_path / 'empty'}"], "no films with .npz files in it"),
        ([fine[1], f"--input={tmp_path / 'file'}"], "names a folder of films"),
        ([*fine, "--every=0"], "--every=0: must be 1 or more"),
        ([*fine, "--gap=3"], "--gap: only for --records=stereo"),
        ([*fine, "--records=stereo", "--min_overlap=2"], "--min_overlap=2: must be from 0 to 1"),
        ([*fine, "--quality=0"], "--quality=0"),
        ([*fine, "--image_size=65"], "no record was kept: 4 × filmed at 64 pixels, less than --image_size=65"),
        ([*fine, "--source=nyu"], "--source"),
        ([fine[0], f"--output={tmp_path / 'other'}"], "holds other things (thesis.tex)"),
        ([fine[0], f"--output={labelled}", "--every=5"], "was made with --every=4, not --every=5"),
        ([fine[0], f"--output={labelled}", "--records=stereo"], "a dataset of images, not of stereo"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    mined = commands.run(["data_prep.mine", f"--input={films}", f"--output={labelled}"])
    assert mined.returncode == 2
    assert "a dataset of images, not of pairs; give another --output" in mined.stderr
