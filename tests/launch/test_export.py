"""`python -m launch.export`: real processes on real files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimic_jax.interop.weights import save_folder
from tests import commands
from tests.random_weights import random_weights

ROOT = Path(__file__).parents[2]
COSINE = {"positions": "cosine", "position_grid": (2, 2)}
MODELS = {
    "croco": random_weights("croco", **COSINE),
    "mimic": random_weights("croco", **COSINE, class_token=True),
    "mae": random_weights("mae", **COSINE, class_token=True),
    "no_grid": random_weights("mae", positions="cosine", class_token=True),
}
EXPORTS = [
    ("croco", "croco_pth", "croco.pth"),
    ("no_grid", "timm_vit", "timm.pth", "--image_size=16x24"),
    ("mae", "orbax", "mae"),
]
MORE_EXPORTS = [
    ("mimic", "mimic_pth", "mimic.pth"),
    ("mae", "mae_pth", "mae.pth"),
    ("mae", "multimae", "multimae.pth"),
    ("mimic", "safetensors", "new/mimic.safetensors"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, weights in MODELS.items():
        save_folder(weights, folder / name)
    return folder


def export(*options) -> tuple[int, str, str]:
    done = commands.run(["launch.export", *options])
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("exports", [EXPORTS, pytest.param(MORE_EXPORTS, marks=pytest.mark.slow)])
def test_each_format_from_a_weights_folder(folder, tmp_path, exports):
    pytest.importorskip("torch")
    for model, format, name, *others in exports:
        done = export(f"--workdir={folder / model}", f"--format={format}", f"--output={tmp_path / name}", *others)
        assert done == (0, f"{tmp_path / name}\n{tmp_path / name}.md\n", "")
        assert (tmp_path / name).exists()
        assert (tmp_path / f"{name}.md").read_text().startswith(f"# {Path(name).name}\n")
    left = {path.name for path in tmp_path.iterdir()}
    names = {Path(name).parts[0] for _, _, name, *_ in exports}
    assert left == names | {f"{name}.md" for name in names if name != "new"}


def test_mistakes_are_one_line(folder, tmp_path):
    output, whole = f"--output={tmp_path / 'a.safetensors'}", "--format=safetensors"
    other = "--format=mae_pth", f"--output={tmp_path / 'a.pth'}"
    mistakes = {
        "holds an MAE with class token": [f"--workdir={folder / 'mimic'}", *other],
        "--image_size=big: give SIDE or HEIGHTxWIDTH": [
            f"--workdir={folder / 'no_grid'}",
            "--image_size=big",
            whole,
            output,
        ],
    }
    for message, options in mistakes.items():
        code, out, err = export(*options)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err
    assert not list(tmp_path.iterdir())


def test_without_pytorch_the_extra_is_named_and_other_formats_work(folder, tmp_path):
    without = tmp_path / "without"
    without.mkdir()
    (without / "sitecustomize.py").write_text("import sys\n\nsys.modules['torch'] = None\n")
    pth, timm, options = tmp_path / "a.pth", tmp_path / "timm.safetensors", f"--workdir={folder / 'mae'}"
    environment = os.environ | {"PYTHONPATH": f"{without}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "launch.export", options]
    process = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    refused = subprocess.run([*command, "--format=mae_pth", f"--output={pth}"], **process)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "pip install 'mimic_jax[torch]'" in refused.stderr
    assert not pth.exists()
    written = subprocess.run([*command, "--format=timm_vit", f"--output={timm}"], **process)
    assert written.returncode == 0, written.stderr
