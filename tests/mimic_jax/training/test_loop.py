"""The loop of a run of any task: steps that are not finite, traces, resuming, and bugs of our own."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.command import InputError
from mimic_jax.data.order import examples_in_step
from mimic_jax.task import Evaluation, Results, Task
from mimic_jax.training import loop, run
from mimic_jax.training.workdir_lock import claim_workdir
from tests import toy_task
from tests.toy_task import LENGTH, ROWS, make_toy, toy_config

BAD = 5


def make_bad(config, known) -> Task:
    """A task whose loss is not finite for one of the examples."""

    def loss(model, rows):
        terms = toy_task.loss(model, rows)
        return dataclasses.replace(terms, loss=jnp.where(rows["index"] == BAD, jnp.nan, terms.loss))

    task = make_toy(config, known, loss=loss)
    index = jax.ShapeDtypeStruct((config.batch_size,), np.int32)
    return dataclasses.replace(task, batch=task.batch | {"index": index})


def examples(step: int) -> list[int]:
    return examples_in_step(step - 1, lengths=(LENGTH,), weights=None, batch_size=ROWS, seed=0).tolist()


def bad_steps(first: int, last: int) -> list[int]:
    return [step for step in range(first, last + 1) if BAD in examples(step)]


def test_all_skipped_steps_between_two_reports_are_named(tmp_path, capsys):
    """Each epoch has the example once: three steps of twelve."""
    changes = {"run__on_nonfinite": "skip", "run__max_skipped": 4, "run__log_every": 12, "steps": 12}
    loop.train(toy_config(**changes), tmp_path, make_bad)
    expected = bad_steps(2, 12)  # the first step has a report of its own
    assert len(expected) >= 3
    listed = json.loads((tmp_path / "nonfinite.json").read_text())
    assert [each["step"] for each in listed] == expected
    for each in listed:
        assert each["images"] == [f"toy {index}" for index in examples(each["step"])]
    out = " ".join(capsys.readouterr().out.split())
    assert f"at steps {', '.join(map(str, expected))} the loss or its gradient was not finite" in out
    assert f"(skipped: {len(bad_steps(1, 12))} of at most 4)" in out
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["skipped"]) == (12, len(bad_steps(1, 12)))


def test_a_run_stops_at_a_step_that_is_not_finite(tmp_path):
    (first, *_) = bad_steps(1, 12)
    with pytest.raises(InputError) as raised:
        loop.train(toy_config(steps=12), tmp_path, make_bad)
    message = str(raised.value)
    assert "\n" not in message
    assert f": at step {first} the loss or its gradient was not finite" in message
    assert re.search(r"images are listed in .*nonfinite\.json: toy \d+, …", message)
    assert "There is no checkpoint yet" in message
    assert "--config.run.on_nonfinite=skip" in message


def test_a_trace_of_no_step_has_no_empty_range(tmp_path, capsys):
    """The run is at its last step, and started again for an evaluation that was missed."""

    def make(config, known):
        evaluation = Evaluation(1, lambda values: Results({"x": 1.0}))
        return make_toy(config, known, evaluations=lambda model: {"x": evaluation})

    loop.train(toy_config(steps=2), tmp_path, make_toy)
    capsys.readouterr()
    loop.train(toy_config(steps=2), tmp_path, make, profile=(2, 3))
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: --profile=2:3: no trace is made, as no step is left" in out
    assert not (tmp_path / "profile").exists()


def test_a_trace_outside_the_run_says_which_steps_are_left(tmp_path, capsys):
    loop.train(toy_config(steps=2), tmp_path, make_toy, profile=(3, 4))
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: --profile=3:4: no trace is made, as steps 1 to 2 are left" in out


@pytest.mark.parametrize(
    ("field", "value", "refused"),
    [
        ("seed", 1, "config.seed=0 (now 1)"),
        ("data.trained", 2, "config.data.trained=1 (now 2)"),
        ("data.train", "elsewhere", None),
        ("running", 2, "config.running=1 (now 2)"),
        ("run.log_every", 7, None),
        ("evals.depth", 3, None),
        ("optimizer.b1", 0.5, "config.optimizer.b1=0.9 (now 0.5)"),
    ],
)
def test_resuming_compares_whole_names(tmp_path, field, value, refused):
    """A field whose name begins like one that may change is compared."""
    config = toy_config(data__train="here", data__trained=1, evals__depth=2)
    opened = run.open_run(config, tmp_path / "run", make_toy)
    with config.unlocked():
        config.running = 1
    claim_workdir(dataclasses.replace(opened, config=config))
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    again = dataclasses.replace(opened, config=config)
    if refused is None:
        claim_workdir(again)
        return
    with pytest.raises(InputError) as raised:
        claim_workdir(again)
    assert f"made with {refused}; give the former, or another --workdir" in str(raised.value)


@pytest.mark.parametrize("helper", ["set_up", "_resolved"])
def test_a_bug_of_ours_is_raised_as_itself(tmp_path, monkeypatch, helper):
    """Below the check of the config nothing is taken for the user's mistake, and nothing is written."""

    def broken(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    monkeypatch.setattr(run, helper, broken)
    with pytest.raises(AttributeError, match="NoneType"):
        loop.train(toy_config(), tmp_path / "run", make_toy)
    assert not (tmp_path / "run").exists()
