"""Importing from the command line: real processes."""

import os
import subprocess

import numpy as np
import pytest

from launch import import_weights
from mimic_jax.interop.formats import FORMATS
from mimic_jax.interop.load import load
from tests import commands

torch = pytest.importorskip("torch")


def command(*flags, **options):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return commands.run(["launch.import_weights", *arguments, *flags])


def test_a_published_file_becomes_a_weights_folder(parity, tmp_path):
    fixture = np.load(parity / "croco_rope100.npz")
    state = {key[6:]: torch.from_numpy(fixture[key]) for key in fixture if key.startswith("param/")}
    path = tmp_path / "croco.pth"
    torch.save({"model": state | {"extra": torch.ones(2)}, "epoch": 3}, path)
    done = command(input=path, output=tmp_path / "weights", encoder_heads=4, decoder_heads=4, positions="rope100")
    assert done.returncode == 0, done.stderr
    for line in (
        "format: croco",
        "model: croco",
        "left over: 1 (extra): no part of the model",
        "left over: 1 (epoch): other entries of the file",
        "assumed: mask_ratio 0.9, as published",
        "encoder_width 64, encoder_depth 3, encoder_heads 4",
        f"written: {tmp_path / 'weights'}",
    ):
        assert line in done.stdout, done.stdout
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert ["enc_blocks.0–2.attn.qkv.weight", "[192, 64]", "×3", f"{3 * 192 * 64:,}"] in rows
    total = sum(value.numel() for value in state.values())
    assert rows[-1] == ["total", "", "", f"{total:,}"]
    weights = load(tmp_path / "weights")
    np.testing.assert_array_equal(weights.params["decoder_embed"]["kernel"], fixture["param/decoder_embed.weight"].T)
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert weights.about == {"origin": "croco.pth", "format": "croco", "sha256": digest}


class Runs:
    """Unpickled the ordinary way, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_is_one_line_and_nothing_runs(zipped, tmp_path):
    path, created = tmp_path / "bad.pth", tmp_path / "created"
    torch.save({"model": {"a": torch.ones(2)}, "x": Runs(created)}, path, _use_new_zipfile_serialization=zipped)
    done = command(input=path, output=tmp_path / "weights")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {path}: wants to run posix.system, and files of weights are read without running anything; "
        "save it without that entry, or as tensors alone"
    ]
    assert not created.exists()
    assert not (tmp_path / "weights").exists()


def test_formats_that_the_flag_offers_are_those_there_are():
    offered = import_weights.flags.FLAGS["format"].parser.enum_values
    assert offered == ["auto", *FORMATS]


def test_a_missing_file_and_a_wrong_flag_are_one_line(tmp_path):
    done = command(input=tmp_path / "absent.pth", output=tmp_path / "weights")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "absent.pth: cannot be read (No such file or directory)" in done.stderr
    done = command(input=tmp_path / "absent.pth", output=tmp_path / "weights", positions="rope50")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "rope100" in done.stderr
