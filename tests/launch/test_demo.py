"""The demo from the command line, made small: whole, done already, killed and carried on, on given videos."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--scenes=2", "--held_out=2", "--frames=24", "--steps=31"]


def demo(*flags: str, **options) -> subprocess.Popen:
    # Enough steps of enough pairs that code which runs fast is worth its making.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "launch.demo", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        **options,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A demo that was killed as a terminal's Ctrl-C or a closing terminal would, stage by stage, and carried on."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    for sign in ("videos/train/room_0000.mp4", "pairs/train/manifest.json"):
        process = demo(f"--output={folder}", *SMALL, start_new_session=True)
        deadline = time.monotonic() + 200
        while not (folder / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (folder / "summary.json").exists()
    finish(demo(f"--output={folder}", *SMALL))
    return folder


def test_it_leaves_pictures_and_a_summary(done):
    for name in ("pairs.png", "loss.png", "reconstruction.png"):
        assert cv2.imread(str(done / name)) is not None
    summary = json.loads((done / "summary.json").read_text())
    manifests = [json.loads((done / "pairs" / part / "manifest.json").read_text()) for part in ("train", "held_out")]
    for key in ("pairs_tried", "pairs_kept"):
        assert summary[key] == sum(manifest["totals"][key] for manifest in manifests) > 0
    assert summary["steps"] == 31
    assert summary["ratio"] == pytest.approx(summary["error_with_right_view"] / summary["error_with_wrong_view"])
    lines = [json.loads(line) for line in (done / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["last_loss"] == [line["loss"] for line in lines if "loss" in line][-1]
    assert 0 <= summary["patches_found_by_attention"] <= 1
    scenes = [set(manifest["scenes"]) for manifest in manifests]
    films = [sorted((done / "videos" / part).glob("*.glb")) for part in ("train", "held_out")]
    assert films[0][0].read_bytes() != films[1][0].read_bytes(), f"held-out rooms must be other rooms: {scenes}"


def test_run_again_it_says_that_it_is_done(done):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file() and path.name != "demo.json"}
    output = finish(demo(f"--output={done}", *SMALL))
    assert "done already" in output
    assert "ratio" in output
    assert before.keys() - {done / ".lock"} == {
        path for path in before if path.exists() and path.stat().st_mtime_ns == before[path]
    } - {done / ".lock"}


def test_other_flags_are_refused_in_one_line(done):
    process = demo(f"--output={done}", *SMALL[:-1], "--steps=32")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "begun with other flags" in output
    assert len(output.strip().splitlines()) == 1


def test_it_takes_the_readers_own_videos(done, tmp_path):
    videos = tmp_path / "my videos"
    (videos / "nested").mkdir(parents=True)
    films = sorted((done / "videos").rglob("*.mp4"))
    for index, film in enumerate(films[:3]):
        target = videos / "nested" if index == 1 else videos
        (target / f"clip {index}.mp4").write_bytes(film.read_bytes())
    output = tmp_path / "demo"
    finish(demo(f"--output={output}", f"--videos={videos}", "--steps=31"))
    assert json.loads((output / "summary.json").read_text())["held_out_pairs"] > 0
    assert len(list((output / "videos" / "train").iterdir())) == 2

    one = tmp_path / "one"
    one.mkdir()
    (one / "clip.mp4").write_bytes(films[0].read_bytes())
    process = demo(f"--output={tmp_path / 'refused'}", f"--videos={one}")
    message, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "at least two" in message
