"""Processes that die, by signals and by faults in libraries, cost nothing but time."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from data_prep.workers import Crashed, on_beam, on_processes

ROOT = Path(__file__).resolve().parents[2]


def work(item, folder):
    """Leaves a file a try. Items are numbers, or say how the process ends at its first try, or at each."""
    tries = len(list(folder.glob(f"{item}.*")))
    (folder / f"{item}.{tries}.{os.getpid()}").touch()
    if item == "killed" or (item == "killed once" and tries == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "segmentation fault":
        ctypes.string_at(0)
    if item == "exception":
        raise ValueError("a fault of the program")
    time.sleep(0.02)
    return f"result of {item}"


def run(items, folder, processes=2):
    results = {}

    def done(item, result):
        assert item not in results
        results[item] = result

    on_processes(functools.partial(work, folder=folder), items, processes, done)
    return results


def test_each_item_once(tmp_path):
    items = list(range(20))
    assert run(items, tmp_path) == {item: f"result of {item}" for item in items}
    assert len(list(tmp_path.iterdir())) == 20
    assert len({path.name.split(".")[2] for path in tmp_path.iterdir()}) <= 2
    assert run([], tmp_path) == {}


def test_what_kills_its_process_is_left_out_and_the_rest_is_done(tmp_path):
    items = [0, "killed", 1, "killed once", 2, "segmentation fault", *range(3, 12)]
    results = run(items, tmp_path)
    bad = {item for item, result in results.items() if isinstance(result, Crashed)}
    assert bad == {"killed", "segmentation fault"}
    assert set(results) == set(items)
    assert all(results[item] == f"result of {item}" for item in items if item not in bad)
    # Tried together with others, and alone.
    assert len(list(tmp_path.glob("killed.*"))) == 2


def test_an_exception_ends_the_others_and_is_raised(tmp_path):
    with pytest.raises(ValueError, match="a fault of the program"):
        run(["exception", *range(1000)], tmp_path)
    assert len(list(tmp_path.iterdir())) < 1000


def test_a_crash_is_raised_where_nobody_takes_it(tmp_path):
    with pytest.raises(BrokenProcessPool, match="a process died twice at killed"):
        on_processes(functools.partial(work, folder=tmp_path), ["killed"], 1)


def test_processes_that_cannot_start_are_an_error(tmp_path):
    # The module that the function is in cannot be imported where it is to run.
    program = (
        "import sys; sys.path.insert(0, {folder!r})\n"
        "from data_prep.workers import on_processes\n"
        "import os\n"
        "if __name__ == '__main__':\n"
        "    on_processes(print, [1, 2], 2)\n"
        "else:\n"
        "    os._exit(3)\n"
    )
    (tmp_path / "program.py").write_text(program.format(folder=str(ROOT)))
    command = [sys.executable, tmp_path / "program.py"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "die as soon as they start" in process.stderr.splitlines()[-1]


def test_beam_calls_it_on_every_item(tmp_path):
    (tmp_path / "tries").mkdir()
    on_beam(functools.partial(work, folder=tmp_path / "tries"), list(range(20)), "--runner=DirectRunner", tmp_path)
    assert {path.name.split(".")[0] for path in (tmp_path / "tries").iterdir()} == {str(item) for item in range(20)}
    assert [path.name for path in tmp_path.iterdir()] == ["tries"]
