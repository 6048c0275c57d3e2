"""launch.plan from the command line, in processes of its own: it chooses its devices before jax is imported."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "batch_size": 16,
    "model.encoder_width": 32,
    "model.encoder_depth": 1,
    "model.encoder_heads": 2,
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "data.size": 20,
    "data.crop": 16,
}


def plan(topology, *options, **changes):
    fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    command = [
        sys.executable,
        "-m",
        "launch.plan",
        "--config=configs/croco_tiny.py",
        f"--topology={topology}",
        *options,
    ]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    # XLA's own passes are all run; what is fast is the machine code that nobody runs.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {
        "XLA_FLAGS": quick,
        "COLUMNS": "150",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]),
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def rows(done):
    """The table's second column by its first."""
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^│ (.+?) +│ (.*?) *│$", done.stdout, re.MULTILINE)
    return dict(found)


def amount(text):
    number, unit = text.split()
    return float(number) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[unit]


def test_virtual_devices():
    told = rows(plan("cpu:8", run__remat="none"))
    assert told["mesh"] == "data 8, fsdp 1, tensor 1"
    assert "(1.000 of the closed form)" in told["FLOPs compiled, all chips"]
    # A ring of 8 sends each gradient twice but for an eighth; gradients are as large as parameters. A CPU's sends those
    # of the decoder's embedding, here 2 %, for each view by itself.
    sent = amount(told["all-reduce over data, sent by a chip"])
    assert sent == pytest.approx(2 * 7 / 8 * amount(told["parameters, a chip"]), rel=0.03)
    assert "not estimated" in told["step time"]


@pytest.mark.parametrize(
    ("topology", "changes", "said"),
    [
        ("v5e:16", {}, "--topology=v5e:16: a v5e slice has 2 sizes"),
        ("abacus", {}, "--topology=abacus is no topology that is known here"),
        ("cpu:3", {}, "config.batch_size: the 16 records of a batch do not divide over 3 devices"),
        ("cpu:1", {"data__crop": 15}, "config.data.crop=15 must be a multiple"),
    ],
)
def test_mistakes_are_one_line(topology, changes, said):
    done = plan(topology, **changes)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_libtpu_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "libtpu.py").write_text("raise ImportError('as where it is not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)  # set where jax has found one
    done = plan("v5e:2x2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'mimic_jax[plan]'" in done.stderr


def test_a_tpu_slice():
    pytest.importorskip("libtpu", reason="libtpu is absent: pip install 'mimic_jax[plan]' to test TPU slices")
    told = rows(plan("v5e:2x2", "--examples=1000", "--price_per_chip_hour=3600000", batch_size=8, run__remat="none"))
    assert told["mesh"] == "data 4, fsdp 1, tensor 1"
    assert "(1.000 of the closed form)" in told["FLOPs compiled, all chips"]
    assert told["fits"].startswith("yes: ")
    assert "400 steps" in told["whole run"]
    # 400 steps on 4 chips at a price of 1000 a chip-second: as many thousands as chip-seconds.
    microseconds = float(re.search(r"at least ([\d.]+) µs", told["step time"])[1])
    cost = float(told["cost of the run"].removeprefix("at least ").replace(",", ""))
    assert cost == pytest.approx(400 * 4 * microseconds / 1000, abs=400 * 4 * 0.06 / 1000)


def test_a_search_keeps_what_it_knows(tmp_path):
    """Meshes 1·8, 2·4, 4·2, 8·1 and, as heads are 2, 1·4, 2·2, 4·1 by 2: of two or four rows a device, two remats."""
    options = ("--search", f"--cache={tmp_path / 'cache.json'}")
    first = plan("cpu:8", *options, "--search_limit=1")
    assert ranking(first) == [("1×8×1", "dots", "1", "2")], "16 pairs over 8 devices"
    assert "ranked by memory" in first.stdout
    assert max(map(len, first.stdout.splitlines()[:5])) <= 80
    assert first.stdout.splitlines()[-1] == "for the first: --config.run.mesh.fsdp=8"
    assert left_out(first) == {
        "not needed: the mesh has room without so much computed again, or in so many parts": 2 * 2 - 1,
        "not tried: --search_limit is reached": 3 * 2 * 2 + 3 * 3 * 2,
    }
    # The same without compiling anything.
    again = plan("cpu:8", *options, "--search_limit=0")
    assert (again.stdout, again.stderr) == (first.stdout, "")


def ranking(done):
    assert done.returncode == 0, done.stderr
    return re.findall(r"^ *(\d+×\d+×\d+) +(\w+) +(\d+) +(\d+) ", done.stdout, re.MULTILINE)


def left_out(done):
    return {reason: int(times) for times, reason in re.findall(r"^left out, (\d+)×: (.+)$", done.stdout, re.MULTILINE)}


def test_an_interrupted_search_says_what_it_knows(tmp_path):
    """Ctrl-C comes while the compiler runs, which does not hear it."""
    command = [sys.executable, "-m", "launch.plan", "--config=configs/croco_v1_vitb.py", "--topology=cpu:8"]
    command += ["--search", f"--cache={tmp_path / 'cache.json'}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "COLUMNS": "150"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        # It says so on standard error when it begins to compile.
        assert process.stderr.readline().startswith("compiling data 1, fsdp 8, tensor 1")
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert re.search(r"^left out, \d+×: not tried: interrupted$", told, re.MULTILINE)
