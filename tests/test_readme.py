"""Every command and every piece of Python that README and docs show is run: the commands themselves, made small."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

TORCH = importlib.util.find_spec("torch") is not None

# Added to a command so that it takes seconds. A later flag stands over an earlier one.
SMALLER = {
    "data_prep.film": ["--scenes=2", "--frames=24", "--size=160"],
    "data_prep.label": ["--every=8"],
    "data_prep.mine": ["--min_overlap=0", "--max_overlap=1"],
    "data_prep.report": [],
    "data_prep.inspect": [],
    "data_prep.match": [],
    "data_prep.merge": [],
    "launch.pretrain": [
        "--config.steps=6",
        "--config.batch_size=4",
        "--config.optimizer.warmup_steps=2",
        "--config.run.log_every=2",
    ],
    "launch.finetune": [
        "--config.steps=4",
        "--config.batch_size=4",
        "--config.optimizer.warmup_steps=1",
        "--config.optimizer.total_steps=4",
    ],
    "launch.predict": [],
    "launch.runs": [],
    "launch.plan": ["--search_limit=1"],
    "launch.evaluate": ["--pairs=4"],
    "launch.reconstruct": ["--rows=2"],
    "launch.correspondences": ["--rows=2"],
    "launch.export": [],
    "launch.import_weights": [],
    "benchmarks.input_pipeline": ["--pairs=64", "--seconds=0.2", "--repeats=1"],
    "benchmarks.train_step": ["--configs=croco_tiny", "--batch=2", "--steps=1", "--dtypes=float32"],
    "benchmarks.curation": ["--repeats=1"],
    "benchmarks.mining_scale": ["--films=2", "--minutes=1", "--pairs=1"],
    "benchmarks.adaptive_yield": ["--rooms=1", "--frames=40"],
    "benchmarks.curation_quality": ["--rooms=1", "--frames=3"],
    "benchmarks.residual_dtype": ["--width=32", "--heads=2", "--length=16", "--seeds=1"],
    "benchmarks.compile_cache": ["--repeats=1"],
}


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def shown() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def run(words: list[str], folder: Path) -> None:
    """python -m WORDS, which must succeed."""
    if words[0] == "launch.plan":  # chooses its devices before jax is imported
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)
    else:
        done = commands.run(words, folder, seconds=600)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def test_every_command_shown_is_one_that_is_run():
    """A command that no test can run must not be shown."""
    for words in shown():
        if words[0] == "source":
            assert words[1] == ".venv/bin/activate"
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        else:
            assert words[:2] == ["python", "-m"], words
            assert words[2] in SMALLER, words


def have_ready(module: str, folder: Path) -> None:
    """What a reader has who comes to a command: pictures of their own, another dataset, clips."""
    if module == "data_prep.match":
        import cv2

        capture = cv2.VideoCapture(str(folder / "films" / "room_0000.mp4"))
        for name in ("view1.jpg", "view2.jpg"):
            cv2.imwrite(str(folder / name), capture.read()[1])
    elif module == "data_prep.merge":
        mined = "--input=films", "--output=more_pairs", "--name=others", "--policy=step", "--step=0.5"
        run(["data_prep.mine", *mined, *SMALLER["data_prep.mine"]], folder)
    elif module == "launch.import_weights":
        # A released file, as far as its name and its format go.
        shutil.copy(folder / "model.pth", folder / "CroCo_V2_ViTLarge_BaseDecoder.pth")
    elif module == "benchmarks.adaptive_yield":
        (folder / "clips").symlink_to(folder / "films")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder as a reader has it, after the commands on the pages, in an order that works."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    lines = [words for words in shown() if words[0] == "python"]
    # Pre-training from weights needs the weights that other commands write.
    order = {module: place for place, module in enumerate(SMALLER)}
    from_weights = lambda words: words[2] == "launch.pretrain" and "--config.init" in shlex.join(words)  # noqa: E731
    place = lambda words: (from_weights(words), order[words[2]])  # noqa: E731
    done = set()
    for words in sorted(lines, key=place):
        # A slice is compiled for minutes, by a compiler that need not be here.
        if tuple(words) not in done and (TORCH or ".pth" not in shlex.join(words)) and "--topology=v" not in str(words):
            done.add(tuple(words))
            have_ready(words[2], folder)
            run([*words[2:], *SMALLER[words[2]]], folder)
    return folder


def test_the_commands_leave_what_the_pages_say(folder):
    for name in ("films/room_0000.mp4", "films/room_0000.glb", "films/room_0000.npz", "pairs/manifest.json"):
        assert (folder / name).is_file()
    for name in ("pairs.html", "match.png", "everything/manifest.json", "pairs_beam/manifest.json"):
        assert (folder / name).is_file()
    for name in ("out/rooms/manifest.json", "out/rooms.html", "out/rooms_stereo/manifest.json"):
        assert (folder / name).is_file()
    for name in (
        "out/depth.json",
        "out/predicted/view1_depth_colour.png",
        "out/pictures/depth.png",
        "out/normals/best.json",
    ):
        assert (folder / name).is_file()
    for name in ("run/config.json", "run/metrics.jsonl", "run/checkpoints", "run/tensorboard", "picture.png"):
        assert (folder / name).exists()
    best = json.loads((folder / "out" / "best" / "best.json").read_text())["completion"]
    assert best["number"] == "error"
    assert (folder / "out" / "best" / "checkpoints" / str(best["step"])).is_dir()
    assert (folder / "out" / "best" / "pictures" / "reconstruction.png").is_file()
    for name in ("two_views.png", "matches.png", "mined_matches.png", "model.safetensors.md", "continued/config.json"):
        assert (folder / name).is_file()


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed, so no command with a .pth file ran: make extras")
def test_the_commands_with_pytorchs_files_leave_what_the_pages_say(folder):
    for name in ("model.pth", "model.pth.md", "croco_v2/weights.json"):
        assert (folder / name).is_file()


def test_the_python_shown_runs(folder):
    for number, block in enumerate(blocks("python")):
        (folder / f"shown{number}.py").write_text(block)
        run([f"shown{number}"], folder)


def test_links_and_pictures_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} → {target}"
