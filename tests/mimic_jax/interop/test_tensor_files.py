"""Files of tensors: what PyTorch and safetensors themselves write is read, and nothing in them is run."""

import argparse
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mimic_jax.command import InputError
from mimic_jax.interop.tensor_files import read_tensors, write_pth, write_safetensors

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

ROOT = Path(__file__).parents[3]
TENSORS = {
    "scalar": np.array(0.1, np.float32),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "special": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
}


def same_bits(found, expected) -> bool:
    return found.shape == expected.shape and found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def test_what_is_written_loads_in_pytorch_bit_for_bit(tmp_path):
    write_pth(tmp_path / "a.pth", TENSORS, croco_kwargs={"enc_depth": 3}, mimic_jax="{}")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["croco_kwargs"] == {"enc_depth": 3}
    write_safetensors(tmp_path / "a.safetensors", TENSORS, {"mimic_jax": "text"})
    for tensors in (loaded["model"], safetensors_torch.load_file(tmp_path / "a.safetensors")):
        assert tensors.keys() == TENSORS.keys()
        assert all(same_bits(tensors[name].numpy(), value) for name, value in TENSORS.items())
    for name in ("a.pth", "a.safetensors"):
        found, metadata = read_tensors(tmp_path / name)
        assert all(same_bits(found[key], value) for key, value in TENSORS.items())
        assert metadata["mimic_jax"] == {"a.pth": "{}", "a.safetensors": "text"}[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


@pytest.mark.parametrize("write", [write_pth, lambda path, tensors: write_safetensors(path, tensors, {})])
def test_a_file_that_cannot_be_written_is_one_line(write, tmp_path):
    with pytest.raises(InputError, match=r"absent/a: cannot be written \(No such file"):
        write(tmp_path / "absent" / "a", TENSORS)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_half_precision_is_widened_exactly_whatever_the_file_is_called(kind, suffix, tmp_path):
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    tensors = {str(dtype): values.to(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
    tensors["count"] = torch.tensor(3)
    path = tmp_path / f"a{suffix}"
    if kind == "safetensors":
        safetensors_torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    found, _ = read_tensors(path)
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.element_size() == 2 else tensor
        assert same_bits(found[name], expected.numpy()), name


@pytest.mark.parametrize("key", ["model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_state_dict_is_found_and_everything_else_is_named(key, prefix, tmp_path):
    state = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.nn.Parameter(torch.zeros(3))}
    args = argparse.Namespace(model="CroCoNet()", lr=1.5e-4)
    rest = {"args": args, "epoch": 3, "optimizer": {"state": {0: torch.ones(4)}}, "croco_kwargs": {"enc_depth": 2}}
    torch.save((state if key is None else {key: state}) | rest, tmp_path / "a.pth")
    found, metadata = read_tensors(tmp_path / "a.pth")
    assert {name: value.tolist() for name, value in found.items()} == {"a.weight": [1, 1], "b": [0, 0, 0]}
    assert metadata["args"] == {"model": "CroCoNet()", "lr": 1.5e-4}
    assert metadata["croco_kwargs"] == {"enc_depth": 2}
    assert metadata["others"] == ["epoch", "optimizer"]


class Runs:
    """Unpickled the ordinary way, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


class Opens(Runs):
    def __reduce__(self):
        return open, (str(self.path), "w")


class Evaluates(Runs):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("bad", [Runs, Opens, Evaluates])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "optimizer", "args"])
def test_a_malicious_pickle_is_refused_and_not_run(bad, zipped, where, tmp_path):
    created = tmp_path / "created"
    content = {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1.0)}
    evil = bad(created)
    content[where] = {"model": {"a": torch.ones(2), "b": evil}, "args": argparse.Namespace(x=evil)}.get(where, evil)
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"a\.pth: wants to run \S*(system|open|eval), and files of weights are read"):
        read_tensors(path)
    assert not created.exists()
    torch.load(path, weights_only=False)  # … and it is as malicious as it looks
    assert created.exists()


def test_numbers_of_numpy_beside_the_weights_are_harmless(tmp_path):
    path = tmp_path / "weights.pth"
    best = {"best": np.float64(3), "epoch": np.int32(2), "psnr": np.float32(1.5)}
    torch.save({"model": {"a": torch.ones(2)}, **best}, path)
    tensors, metadata = read_tensors(path)
    np.testing.assert_array_equal(tensors["a"], [1, 1])
    assert sorted(metadata["others"]) == sorted(best)


def test_a_class_of_anyones_is_refused_by_name(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "path": Path("x")}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"wants to run pathlib\.PosixPath"):
        read_tensors(tmp_path / "a.pth")


def test_without_pytorch_the_message_says_what_to_install(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    write_safetensors(tmp_path / "a.safetensors", TENSORS, {})
    program = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # what `import torch` finds where it is not installed
from mimic_jax.command import InputError
from mimic_jax.interop.tensor_files import read_tensors, write_pth
folder = Path(sys.argv[1])
print(len(read_tensors(folder / "a.safetensors")[0]))
for act in (lambda: read_tensors(folder / "a.pth"), lambda: write_pth(folder / "b.pth", {})):
    try:
        act()
    except InputError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "3", done.stderr
    assert [line.split(": ", 1)[1] for line in lines[1:]] == [
        "is PyTorch's format, which needs PyTorch: pip install 'mimic_jax[torch]'"
    ] * 2
    assert not (tmp_path / "b.pth").exists()


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def test_damage_is_one_line_that_names_the_file(tmp_path):
    tensors = {"a": torch.ones(3000)}
    torch.save(tensors, tmp_path / "zip")
    torch.save(tensors, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    safetensors_torch.save_file(tensors, tmp_path / "safe")
    np.savez(tmp_path / "n.npz", a=np.ones(3))
    whole = {name: (tmp_path / name).read_bytes() for name in ("zip", "legacy", "safe")}
    cases = {
        "is empty": b"",
        "is neither": b"hello world, this is text",
        "checksum": changed(whole["zip"], len(whole["zip"]) // 2),
        "cut short": whole["zip"][:-30],
        "cut short ": b"PK\x03\x04" + b"0" * 100,
        "no file of tensors": whole["legacy"][:200],
        "no file of tensors ": whole["legacy"][: len(whole["legacy"]) // 2],
        "no file of tensors  ": pickle.dumps({"a": np.ones(3)}),
        "no file of tensors   ": (tmp_path / "n.npz").read_bytes(),
        "no .safetensors file": whole["safe"][:-1],
        "no .safetensors file ": changed(whole["safe"], 12),
        "no .safetensors file  ": struct.pack("<Q", 1 << 60) + b"{" + b"0" * 50,
    }
    for message, content in cases.items():
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_tensors(tmp_path / "x.pth")
        text = str(caught.value)
        assert text.startswith(f"{tmp_path / 'x.pth'}: ")
        assert message.strip() in text
        assert "\n" not in text
        assert "weights_only" not in text, text  # PyTorch's advice to switch its protection off
    for path, message in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=message):
            read_tensors(path)


def test_small_files_that_would_fill_the_memory_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"its tensors have 4,398,046,511,104 bytes"):
        read_tensors(path)
    torch.save({"a": torch.zeros(1000)}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(InputError, match="compressed entries"):
        read_tensors(path)
    # Lists of the same lists: 10^20 texts to whoever goes through them all.
    bomb = ["x"] * 10
    for _ in range(20):
        bomb = [bomb] * 10
    torch.save({"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(bomb=bomb), "bomb": bomb}, path)
    assert read_tensors(path)[1]["others"] == ["bomb"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no tensors"),
        ({"model": {"epoch": 3}}, "has no tensors"),
        ([torch.ones(2)], "has no tensors"),
        ({"a": torch.ones(2, 2).to_sparse()}, "tensor a is sparse"),
        ({"a": torch.ones(2, device="meta")}, "tensor a is sparse, quantized or without data"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, r"tensor a is of type torch\.float8_e4m3fn"),
    ],
)
def test_files_without_plain_tensors_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path / "a.pth")


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    safetensors_torch.save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="tensor a is of type F8_E4M3; save it as float32"):
        read_tensors(tmp_path / "a.safetensors")


@hypothesis.given(
    kind=st.sampled_from(["zip", "legacy", "safe"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.floats(0, 1),
)
def test_whatever_the_damage_it_is_read_or_refused(kind, edits, keep):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        tensors = {"a.weight": torch.ones(5, 3)}
        if kind == "safe":
            safetensors_torch.save_file(tensors, path)
        else:
            torch.save({"model": tensors, "n": [1, 2]}, path, _use_new_zipfile_serialization=kind == "zip")
        data = bytearray(path.read_bytes())
        for where, value in edits:
            data[int(where * len(data))] = value
        path.write_bytes(data[: int(len(data) * max(keep, 0.5))])
        with contextlib.suppress(InputError):
            read_tensors(path)
