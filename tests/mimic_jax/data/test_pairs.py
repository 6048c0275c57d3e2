"""Batches by recording which pairs come, and by their pixels; workers and signals are real."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data import pairs
from mimic_jax.data.mixture import all_examples, hold_out, open_mixture
from mimic_jax.data.order import examples_in_step
from tests.datasets import make_pair, write_dataset
from tests.mimic_jax.data.numbered import numbers_in, write_numbered

SIZES = {"a": 23, "b": 7, "c": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Datasets of 23, 7 and 12 pairs, numbered through, three of them a scene."""
    folder, first = tmp_path_factory.mktemp("data"), 0
    for name, count in SIZES.items():
        write_numbered(folder / name, first, count)
        first += count
    return {name: str(folder / name) for name in SIZES}


@pytest.fixture
def one(folders):
    return all_examples(open_mixture(folders["a"], "f"))


@pytest.fixture
def several(folders):
    return all_examples(open_mixture(list(folders.values()), "f"))


@pytest.fixture
def weighted(folders):
    return all_examples(open_mixture([(folders["a"], 2), (folders["b"], 1), (folders["c"], 0.5)], "f"))


@pytest.fixture
def training(folders):
    """What is left of two datasets when scenes are held out."""
    return hold_out(open_mixture(f"{folders['a']},{folders['c']}", "f"), 0.3)[0]


@pytest.fixture(params=["one", "several", "weighted", "training"])
def examples(request):
    return request.getfixturevalue(request.param)


def numbers(examples):
    return [pair.frame1 for pair in pairs.read_pairs(examples, range(len(examples)))]


def found(examples, steps, **options):
    """The numbers of the pairs in each step."""
    data = pairs.batches(examples, size=(8, 8), batch_size=6, seed=0, **options)
    rows = [numbers_in(next(data)) for _ in range(steps)]
    data.close()
    return rows


def expected(examples, first_step, steps, index=0, count=1):
    """The same, of which no batch is read; share `index` of `count` of each step."""
    names = np.array(numbers(examples))
    rows = [
        names[examples_in_step(examples, batch_size=6, seed=0, step=step)].reshape(count, -1)[index].tolist()
        for step in range(first_step, first_step + steps)
    ]
    assert len(set(map(tuple, rows))) > steps // 2
    return rows


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_batches_hold_the_examples_of_their_steps_in_order(examples, threads):
    assert found(examples, 12, threads=threads) == expected(examples, 0, 12)


@pytest.mark.parametrize(("first_step", "count"), [(0, 2), (7, 2), (1000, 3), (3, 6)])
def test_shares_and_resumed_runs_have_theirs(examples, first_step, count):
    for index in range(count):
        share = found(examples, 5, first_step=first_step, share_index=index, share_count=count)
        assert share == expected(examples, first_step, 5, index, count)


def test_workers_have_the_same_order(weighted):
    share = found(weighted, 12, first_step=4, share_index=1, share_count=2, workers=3, threads=2)
    assert share == expected(weighted, 4, 12, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 1), (5, 2)])
@pytest.mark.parametrize(("first_step", "index", "count"), [(0, 0, 1), (11, 1, 3)])
def test_any_workers_and_threads_have_the_same_order(examples, workers, threads, first_step, index, count):
    options = {"share_index": index, "share_count": count, "workers": workers, "threads": threads}
    assert found(examples, 40, first_step=first_step, **options) == expected(examples, first_step, 40, index, count)


def test_no_pair_of_a_scene_held_out_is_trained_on(folders):
    train, apart = hold_out(open_mixture([(folders["a"], 1), (folders["c"], 3)], "f"), 0.3)
    scenes = {number // 3 for number in numbers(apart)}
    assert len(scenes) >= 3
    seen = set(itertools.chain.from_iterable(found(train, 100)))
    assert seen == set(numbers(train))
    assert not {number // 3 for number in seen} & scenes


def test_places_count_through_the_examples(several, training):
    # Dealt to three shards in turn.
    ends = (0, 23), (23, 30), (30, 42)
    stored = [number for first, end in ends for shard in range(3) for number in range(first + shard, end, 3)]
    assert numbers(several) == stored
    assert [pair.frame1 for pair in pairs.read_pairs(several, [41, 0, 9])] == [41, 0, stored[9]]
    left = numbers(training)
    assert left == [number for number in stored if number in left]
    assert 0 < len(left) == len(training) < 35
    assert [pair.frame1 for pair in pairs.read_pairs(training, [3, 3, 0])] == [left[3], left[3], left[0]]
    dataset = several.mixture.datasets[1]
    assert [pair.frame1 for pair in pairs.read_pairs(dataset, [1, 0])] == [26, 23]


def test_a_spread_is_even_and_has_both_ends(several):
    assert pairs.spread(several, 5) == [0, 10, 20, 31, 41]
    assert pairs.spread(several, 100) == list(range(42))
    assert pairs.spread(several, 1) == [0]
    nothing = hold_out(several.mixture, 0.0)[1]
    assert pairs.spread(nothing, 5) == pairs.read_pairs(nothing, []) == []


def test_an_example_is_described_by_where_it_lies(folders, training, tmp_path):
    (line,) = pairs.describe(training, [len(training) - 1])
    # The last of the last shard of the last dataset that is not held out.
    last = numbers(training)[-1]
    ours = [number for number in range(30, 42) if number % 3 == last % 3]
    shard = Path(folders["c"]) / records.shard_name("train", last % 3, 3)
    assert line == f"tést/s{last // 3}, frames {last} and -1 (record {ours.index(last)} of {shard})"
    groups = write_numbered(tmp_path / "d", 0, 17)
    lines = pairs.describe(all_examples(open_mixture(str(tmp_path / "d"), "f")), range(17))
    stored = [(shard, row, pair) for shard, group in enumerate(groups) for row, pair in enumerate(group)]
    for line, (shard, row, pair) in zip(lines, stored, strict=True):
        assert f"frames {pair.frame1} and" in line
        assert line.endswith(f"(record {row} of {tmp_path / 'd' / records.shard_name('train', shard, 3)})")


def test_batches_hold_the_stored_pixels(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed) for seed in range(5)])
    examples = all_examples(open_mixture(str(tmp_path / "d"), "f"))
    batch = next(pairs.batches(examples, size=(24, 40), batch_size=4, seed=0))
    assert batch["view1"].shape == batch["view2"].shape == (4, 24, 40, 3)
    assert batch["view1"].dtype == np.uint8
    # The views are each other's mirror images, and smooth.
    assert np.abs(batch["view1"][:, :, ::-1].astype(int) - batch["view2"]).max() < 12
    (pair,) = pairs.read_pairs(examples, [4])
    np.testing.assert_array_equal(pairs.read_view(pair, "view2", (48, 64)), records.decode_image(pair.view2))


@pytest.fixture
def broken(tmp_path):
    """A dataset with a view that is none."""
    junk = records.Pair(b"junk", b"junk", np.zeros(4, np.int16), np.eye(3, dtype=np.float32), 0.5, 9, "s", "kitchen")
    write_dataset(tmp_path / "broken", [junk], shards=1)
    return str(tmp_path / "broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_view_is_named(broken, workers):
    data = pairs.batches(all_examples(open_mixture(broken, "f")), size=(8, 8), batch_size=1, seed=0, workers=workers)
    with pytest.raises(InputError, match=r"^view1 of s/kitchen, frames -1 and -1, is damaged"):
        next(data)


@pytest.fixture
def large(tmp_path):
    """A dataset of one shard that no reader has in its buffer, and the shard."""
    rng, noisy = np.random.default_rng(0), []
    for _ in range(8):
        image = records.encode_image(rng.integers(0, 256, (256, 256, 3), np.uint8))
        noisy.append(records.Pair(image, image, np.zeros(4, np.int16), np.eye(3, dtype=np.float32), 0.5, 9, "s", "c"))
    write_dataset(tmp_path / "large", noisy, shards=1)
    return open_mixture(str(tmp_path / "large"), "f"), tmp_path / "large" / records.shard_name("train", 0, 1)


def cut(shard):
    os.truncate(shard, shard.stat().st_size // 3)


def overwrite(shard):
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(bytes(1000))


@pytest.mark.parametrize("damage", [Path.unlink, cut, overwrite])
@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_that_is_damaged_under_way_is_named(large, damage, opened):
    mixture, shard = large
    data = pairs.batches(all_examples(mixture), size=(8, 8), batch_size=1, seed=0, threads=1)
    if opened:
        next(data)
    damage(shard)
    if opened and damage is Path.unlink:
        next(data)  # a file that is open does not go away
        return
    with pytest.raises(InputError, match=rf"record \d of {shard} cannot be read"):
        list(itertools.islice(data, 24))  # three epochs: some of the first was read ahead


def test_a_missing_shard_is_named_before_anything_is_read(large):
    mixture, shard = large
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard}.*copy it again"):
        pairs.batches(all_examples(mixture), size=(8, 8), batch_size=1, seed=0)


# Says when it begins, and reads on and on with two workers, whose process ids it prints. Asked to end by SIGTERM, it
# reads 20 batches more.
READER = """
import contextlib, multiprocessing, signal
from mimic_jax import command

def main(dataset):
    from mimic_jax.data import mixture, pairs
    left = []
    signal.signal(signal.SIGTERM, lambda *_: left.extend(range(20)))
    examples = mixture.all_examples(mixture.open_mixture(dataset, "f"))
    print("begins", flush=True)
    with contextlib.closing(pairs.batches(examples, size=(8, 8), batch_size=6, seed=0, workers=2)) as data:
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


def wait_until_gone(pids):
    """A process that nobody has asked for its exit code, a zombie, is gone as well."""
    deadline = time.monotonic() + 30
    while any(
        Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in pids
    ):
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


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told(start, folders):
    process = start(folders["a"])
    workers = workers_of(process)
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.startswith("error: a process that reads data was killed (exit code -9)")
    assert errors.count("\n") == 1
    wait_until_gone(workers)
