"""Several processes that train as one: real ones, with collectives between them."""

import json
import signal

import numpy as np

from tests.launch.training import evaluations, losses, metrics, parameters, pretrain, start, steps, wait_for_step
from tests.processes import finish, free_port


def start_all(dataset, workdir, count, *, devices=1, last=(), **changes):
    """last: flags of the last process alone."""
    flags = f"--coordinator=localhost:{free_port()}", f"--processes={count}"
    own = [(f"--process={each}", *(last if each == count - 1 else ())) for each in range(count)]
    return [start(dataset, workdir, *flags, *each, devices=devices, **changes) for each in own]


def test_hosts_come_and_go_and_the_losses_are_those_of_one_process(tiny_pairs, uninterrupted, tmp_path):
    """Two, of which one gets SIGTERM; then four, of which one is killed; then one, to the end."""
    workdir = tmp_path / "run"
    evaluated = evaluations(2, pictures=1)
    two = start_all(tiny_pairs, workdir, 2, **evaluated)
    wait_for_step(workdir, 6, *two)
    two[1].send_signal(signal.SIGTERM)
    codes, ended = finish(two)
    assert codes == [0, 0], ended
    stopped = steps(workdir)[-1]
    assert f"SIGTERM: step {stopped} is saved" in ended[0][0]
    assert not ended[1][0].count("pairs to train on"), "the first process alone speaks"
    assert stopped < 40

    # A process that is lost in a save is noticed later, and by JAX.
    four = start_all(tiny_pairs, workdir, 4, run__checkpoint_every=1000, **evaluated)
    wait_for_step(workdir, stopped + 6, *four)
    four[2].kill()
    codes, ended = finish(four)
    assert codes == [1, 1, -signal.SIGKILL, 1], ended
    for place in (0, 1, 3):
        (line,) = [line for line in ended[place][1].splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: process {place} of 4 has lost another process")
        assert "Traceback" not in ended[place][1]

    done = pretrain(tiny_pairs, workdir)
    assert done.returncode == 0, done.stderr
    found, expected = losses(workdir), losses(uninterrupted)
    assert max(found) == 40
    assert any("evaluation" in line for line in metrics(workdir) if line["step"] <= stopped)
    assert expected.keys() <= found.keys()
    for step in expected:
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-5, err_msg=str(step))
    lines = [line["step"] for line in metrics(workdir) if "loss" in line]
    assert lines == sorted(set(lines))


def test_a_model_that_is_split_over_processes(tiny_pairs, uninterrupted, tmp_path):
    """Two processes of two devices, against one of four: parameters over one axis, heads over the other.

    Then from a checkpoint of which one process cannot read its part, so that the one before it is used, on another
    mesh: of its rows a process has the first and the third quarter, or the second and the fourth.
    """
    options = {"run__mesh__fsdp": 2, "run__mesh__tensor": 2, "run__accumulation_steps": 2, "run__workers": 1}
    options |= {"ema_decay": 0.9, "optimizer__clip_norm": 0.5, "init": uninterrupted, "steps": 12}
    alone = pretrain(tiny_pairs, tmp_path / "alone", devices=4, **options)
    assert alone.returncode == 0, alone.stderr
    workdir = tmp_path / "split"
    codes, ended = finish(start_all(tiny_pairs, workdir, 2, devices=2, **options))
    assert codes == [0, 0], ended
    assert_close(workdir, tmp_path / "alone")

    parts = [path for path in workdir.glob("checkpoints/12/params/ocdbt.process_1/d/*") if path.stat().st_size > 100]
    assert parts
    for path in parts:
        path.write_bytes(path.read_bytes()[:10])
    options |= {"run__mesh__fsdp": 2, "run__mesh__tensor": 1, "run__axis_rules__batch": ("fsdp", "data")}
    options |= {"run__accumulation_steps": 1}
    codes, ended = finish(start_all(tiny_pairs, workdir, 2, devices=2, **options))
    assert codes == [0, 0], ended
    assert "resuming from step 10" in ended[0][0]
    assert (workdir / "damaged" / "12").is_dir()
    for _, said in ended:
        assert "Traceback" not in said
    assert_close(workdir, tmp_path / "alone")


def assert_close(workdir, other):
    found, expected = losses(workdir), losses(other)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    found, expected = parameters(workdir, 12), parameters(other, 12)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_loss_that_is_not_finite_stops_all(tiny_pairs, tmp_path):
    diverging = {"optimizer__base_learning_rate": 1e30, "steps": 20, "run__checkpoint_every": 20}
    codes, ended = finish(start_all(tiny_pairs, tmp_path / "run", 2, **diverging))
    assert codes == [2, 2], ended
    for place, (_, said) in enumerate(ended):
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: process {place} of 2: {tmp_path / 'run'}: at step 3 the loss")
    (found,) = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert (found["step"], len(found["pairs"])) == (3, 4)


def test_processes_of_different_configs_do_not_train(tiny_pairs, tmp_path):
    codes, ended = finish(start_all(tiny_pairs, tmp_path / "run", 2, last=("--config.ema_decay=0.5",)))
    assert codes == [2, 2], ended
    for _, said in ended:
        assert "the processes [1] have another config, or other data, than process 0" in said
    assert not (tmp_path / "run").exists()


def test_flags_that_do_not_go_together_get_one_line(tiny_pairs, tmp_path):
    def refused(message, *flags):
        done = pretrain(tiny_pairs, tmp_path / "run", *flags)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr

    refused("--processes and --process missing", "--coordinator=localhost:1234")
    refused("--process=2 must be from 0 to --processes=2", "--coordinator=localhost:1", "--processes=2", "--process=2")
    refused("--coordinator=localhost must be HOST:PORT", "--coordinator=localhost", "--processes=2", "--process=1")
    refused("the processes that SLURM, GKE or the TPU slice (--cluster) has started cannot meet", "--cluster")
    refused("--profile=9:3 must be FIRST:LAST", "--profile=9:3")
