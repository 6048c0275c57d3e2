"""Processes that read: the same batches as without them, and nothing left of them, whatever signal comes."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mimic_jax.data.workers import Slots
from tests.mimic_jax.data.numbered import expected, found


def test_a_slot_is_free_once_its_batch_is_taken():
    slots = Slots(2, {"views": jax.ShapeDtypeStruct((2, 4, 4, 3), np.uint8)})
    other = pickle.loads(pickle.dumps(slots))
    for turn in range(2):
        other.begin(turn)["views"][:] = 10 + turn
    began = threading.Event()

    def read_on():
        other.begin(2)["views"][:] = 12
        began.set()

    thread = threading.Thread(target=read_on)
    thread.start()
    assert not began.wait(0.1)
    assert (slots.take(0)["views"] == 10).all()
    assert began.wait(10)
    assert (slots.take(1)["views"] == 11).all()
    assert (slots.take(2)["views"] == 12).all()
    slots.close()
    other.begin(9)  # nobody waits any longer
    assert other.closed()
    thread.join()


def test_arrays_of_any_types_share_a_slot():
    """Each has its own aligned memory: what is written to one is not seen in another, nor in another slot."""
    shapes = {"a": ((3,), np.uint8), "b": ((2, 5), np.float32), "c": ((), np.int32), "d": ((0, 7), np.float64)}
    shapes |= {"e": ((1, 1, 3), np.bool_), "f": ((9,), np.dtype("bfloat16")), "g": ((4,), np.int64)}
    slots = Slots(3, {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()})
    other, rng, written = pickle.loads(pickle.dumps(slots)), np.random.default_rng(0), []
    for turn in range(3):
        written.append({name: rng.integers(0, 99, shape).astype(kind) for name, (shape, kind) in shapes.items()})
        for name, array in other.begin(turn).items():
            array[...] = written[turn][name]
    for turn in range(3):
        taken = slots.take(turn)
        assert taken.keys() == shapes.keys()
        for name, array in taken.items():
            assert array.dtype == written[turn][name].dtype
            np.testing.assert_array_equal(array, written[turn][name])
        assert all(array.ctypes.data % 64 == 0 for array in slots.begin(turn + 3).values() if array.size)
    slots.close()


def test_workers_have_the_same_order(weighted):
    share = found(weighted, 12, 1, 2, first_step=4, workers=3, threads=2)
    assert share == expected(weighted, 4, 12, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 1), (5, 2)])
@pytest.mark.parametrize(("first_step", "index", "count"), [(0, 0, 1), (11, 1, 3)])
def test_any_workers_and_threads_have_the_same_order(examples, workers, threads, first_step, index, count):
    options = {"workers": workers, "threads": threads}
    assert found(examples, 40, index, count, first_step=first_step, **options) == expected(
        examples, first_step, 40, index, count
    )


# Says when it begins, and reads on and on with two workers, whose process ids it prints. Asked to end by SIGTERM, it
# reads 20 batches more.
READER = """
import contextlib, multiprocessing, signal
from mimic_jax import command

def main(dataset):
    from mimic_jax.data import mixture, pairs, source
    left = []
    signal.signal(signal.SIGTERM, lambda *_: left.extend(range(20)))
    examples = mixture.all_examples(mixture.open_mixture(dataset, "f"))
    print("begins", flush=True)
    views = pairs.pairs_source(examples, size=(8, 8))
    with contextlib.closing(source.batches(views, batch_size=6, seed=0, workers=2)) as data:
        next(data)
        print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
        for _ in data:
            if left and not left.pop():
                return

if __name__ == "__main__":
    command.run(main, positional=("DATASET",))
"""


@pytest.fixture
def start(tmp_path):
    """Starts READER on a dataset, in a process group of its own."""
    (tmp_path / "reader.py").write_text(READER)
    root = Path(__file__).resolve().parents[3]

    def start_reader(dataset):
        return subprocess.Popen(
            [sys.executable, tmp_path / "reader.py", dataset],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start_reader


def workers_of(process):
    """The process ids, once there has been a batch."""
    assert process.stdout.readline() == "begins\n"
    workers = process.stdout.readline().split()
    assert len(workers) == 2
    return workers


def is_there(pid):
    """A process that nobody has asked for its exit code, a zombie, is gone."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids):
    deadline = time.monotonic() + 30
    while any(map(is_there, pids)):
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_damaged_view_in_a_worker_is_one_line_of_the_parent(start, broken):
    process = start(broken)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.startswith("error: view1 of s/kitchen, frames -1 and -1, is damaged")
    assert errors.count("\n") == 1


def test_workers_end_with_a_parent_that_is_killed(start, folders):
    process = start(folders["a"])
    workers = workers_of(process)
    process.kill()
    wait_until_gone(workers)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 0, ""), (signal.SIGINT, 130, "interrupted; the same command carries on from here\n")],
)
def test_signals_are_for_the_parent_to_answer(start, folders, whole_group, number, code, said):
    process = start(folders["a"])
    workers = workers_of(process)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (code, said)
    wait_until_gone(workers)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.0])
def test_an_interrupt_while_workers_start_is_one_line(start, folders, seconds):
    process = start(folders["a"])
    assert process.stdout.readline() == "begins\n"
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "interrupted; the same command carries on from here\n")


def test_a_worker_that_is_killed_is_told(start, folders):
    process = start(folders["a"])
    workers = workers_of(process)
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75
    assert errors.startswith("error: a process that reads data was killed (exit code -9)")
    assert errors.count("\n") == 1
    wait_until_gone(workers)
