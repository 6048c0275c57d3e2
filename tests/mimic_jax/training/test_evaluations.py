"""Evaluations at their own intervals, the best checkpoint, and the average of parameters."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from launch.workdirs import find_step
from mimic_jax import checkpoints
from mimic_jax.command import InputError
from mimic_jax.task import Evaluation, Results
from mimic_jax.training import loop
from mimic_jax.training.best import best_results
from mimic_jax.training.loop import merge_numbers
from mimic_jax.training.run import open_run
from mimic_jax.workdir import saved_steps
from tests.toy_task import make_toy, toy_config

# What the two evaluations report at each step that they are run at.
SCORES = {2: 5.0, 4: 1.0, 6: 3.0, 8: 1.0, 9: 4.0}
POINTS = {3: 0.2, 6: 0.9, 9: 0.4}


def make_with(calls, best=("score", "min")):
    """A task whose evaluations report numbers in turn, and take note of the parameters."""

    def make(config, known):
        def evaluations(model):
            graph, _ = nnx.split(model)

            def measured(name, number, values):
                def run(state) -> Results:
                    nnx.merge(graph, state)
                    norm = float(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(jax.device_get(state))))
                    calls.append((name, norm))
                    turn = sum(each == name for each, _ in calls) - 1
                    return Results({number: list(values.values())[turn]})

                return run

            return {
                "scoring": Evaluation(2, measured("scoring", "score", SCORES), best),
                "pointing": Evaluation(3, measured("pointing", "points", POINTS)),
            }

        return make_toy(config, evaluations=evaluations)

    return make


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir, calls = tmp_path_factory.mktemp("run"), []
    changes = {"steps": 9, "run__keep_best": True, "run__keep_checkpoints": 1, "ema_decay": 0.5}
    loop.train(toy_config(**changes), workdir, make_with(calls))
    return workdir, calls


def test_each_evaluation_has_its_own_interval_and_the_last_step_has_all(trained):
    workdir, calls = trained
    found = {line["step"]: line["evaluation"] for line in lines_of(workdir) if "evaluation" in line}
    expected = {}
    for number, values in (("score", SCORES), ("points", POINTS)):
        for step, value in values.items():
            expected.setdefault(step, {})[number] = value
    assert found == expected
    order = "scoring pointing scoring scoring pointing scoring scoring pointing"
    assert [name for name, _ in calls] == order.split()


def test_the_best_checkpoint_is_remembered_and_kept(trained):
    """Of equal values the first; with one newest checkpoint kept besides."""
    workdir, _ = trained
    assert json.loads((workdir / "best.json").read_text()) == {"scoring": {"number": "score", "value": 1.0, "step": 4}}
    assert saved_steps(workdir) == [4, 9]
    assert [find_step(workdir, step) for step in ("best", None, "4")] == [4, 9, 4]
    with pytest.raises(InputError, match=r"^--step=6: there is no such checkpoint in .*, only \[4, 9\]$"):
        find_step(workdir, "6")


def test_a_resumed_run_keeps_the_best_of_before(trained, tmp_path):
    workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    again = tmp_path / "run"
    shutil.rmtree(again / "checkpoints" / "9")
    calls = []
    changes = {"steps": 9, "run__keep_best": True, "run__keep_checkpoints": 1, "ema_decay": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        # What is reported after step 4 is worse.
        patch.setitem(SCORES, 2, 6.0)
        patch.setitem(SCORES, 4, 7.0)
        loop.train(toy_config(**changes), again, make_with(calls))
    assert saved_steps(again) == [4, 9]
    assert json.loads((again / "best.json").read_text())["scoring"] == {"number": "score", "value": 1.0, "step": 4}


def test_the_best_checkpoint_that_was_not_kept_is_named(tmp_path):
    changes = {"steps": 9, "run__keep_checkpoints": 1, "run__checkpoint_every": 2}
    loop.train(toy_config(**changes), tmp_path, make_with([]))
    assert saved_steps(tmp_path) == [9]
    with pytest.raises(InputError, match=r"^--step=best: the checkpoint of step 4 was not kept \(config\.run\.keep_"):
        find_step(tmp_path, "best")


def test_without_an_evaluation_that_chooses_there_is_no_best(tmp_path):
    loop.train(toy_config(steps=2), tmp_path, make_with([], best=None))
    assert not (tmp_path / "best.json").exists()
    with pytest.raises(InputError, match=r"^--step=best: .*best\.json names no best evaluation; give a number$"):
        find_step(tmp_path, "best")


def test_the_best_of_numbers_that_are_finite():
    lines = [{"step": step, "evaluation": {"x": value}} for step, value in enumerate([float("nan"), 2.0, 3.0, 3.0, 1])]
    for direction, expected in (("min", (1, 4)), ("max", (3.0, 2))):
        evaluation = Evaluation(1, lambda values: Results({}), ("x", direction))
        (found,) = best_results(lines, {"e": evaluation}).values()
        assert (found["value"], found["step"]) == expected
    assert best_results(lines[:1], {"e": evaluation}) == {}


def test_two_evaluations_must_not_report_one_name():
    assert merge_numbers({"a": Results({"x": 1.0}), "b": Results({"y": 2.0})}) == {"x": 1.0, "y": 2.0}
    with pytest.raises(ValueError, match=r"'b' reports \['x'\]"):
        merge_numbers({"a": Results({"x": 1.0}), "b": Results({"x": 2.0})})


def test_the_average_is_evaluated_and_of_a_short_run_is_near_the_last_parameters(tmp_path):
    """By a recursion in NumPy; with a constant decay of 0.9999 the average would be the initial parameters."""
    calls = []
    config = toy_config(steps=9, ema_decay=0.9999, run__checkpoint_every=1, run__keep_checkpoints=20)
    loop.train(config, tmp_path, make_with(calls))
    params = []
    for step in range(1, 10):
        folder = tmp_path / "checkpoints" / str(step)
        item = checkpoints.restore_item(folder / "params", checkpoints.shapes_of(folder / "params"))
        params.append(jax.tree.map(np.asarray, item))
    run = open_run(config, tmp_path, make_with([]))
    first = jax.tree.map(np.asarray, run.setup.init(run.init_key).params)
    ema = first
    for update, new in enumerate(params):
        decay = min(0.9999, (1 + update) / (10 + update))
        ema = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, ema, new)
    saved = jax.tree.map(np.asarray, checkpoints.read_params(tmp_path / "checkpoints" / "9"))
    for found, expected in zip(jax.tree.leaves(saved), jax.tree.leaves(ema), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    distance = [
        sum(np.square(one - other).sum() for one, other in zip(*map(jax.tree.leaves, (saved, other)), strict=True))
        for other in (params[-1], first)
    ]
    assert distance[0] < 0.1 * distance[1]
    norm = sum(np.square(leaf.astype(float)).sum() for leaf in jax.tree.leaves(saved))
    assert calls[-1][1] == pytest.approx(norm, rel=1e-5), "the average is what is evaluated"
