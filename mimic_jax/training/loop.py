"""Pre-training, from a config to a workdir: the same on one device and on many hosts."""

import collections
import json
import signal
from contextlib import ExitStack, closing
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich import print as rich_print

from mimic_jax import files, hosts
from mimic_jax.command import InputError
from mimic_jax.training.checkpoint import Checkpoints, writing
from mimic_jax.training.evaluation import make_evaluation
from mimic_jax.training.metrics import METRICS, Metrics, read_metrics
from mimic_jax.training.run import Run, open_run
from mimic_jax.training.start import add_start, alone, claim
from mimic_jax.training.state import TrainState, start_from
from mimic_jax.training.watch import Display, Speed, summary

# Steps that the host may be ahead of the devices.
AHEAD = 2
NONFINITE = "nonfinite.json"
PROFILE = "profile"


def train(
    config: ConfigDict, workdir: Path, *, profile: tuple[int, int] | None = None, wandb_project: str = ""
) -> None:
    """Trains until `config.steps` or `config.epochs`, from the newest checkpoint in the workdir if there is one.

    SIGTERM, to any process of the run, ends it after a step, with a checkpoint. So does Ctrl-C where there is one
    process, and is then raised; several end at once.

    Args:
      config: as in configs/; every field is used.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `config.json`, `data.json`, `environment.json`;
        where there is cause, `damaged/`, `nonfinite.json` and `profile/`. All hosts must see it.
      profile: the first and the last step of a trace of the devices, which goes to `profile/` in the workdir.
      wandb_project: of Weights & Biases; empty for none.

    Raises:
      InputError: a field of the config, the dataset or the workdir cannot be used, or the loss is no longer finite.
    """
    with hosts.ending_together():
        run = open_run(config, workdir)
        # Nothing is written before all of the config is known to work.
        claim(run)
        with (
            writing(workdir),
            alone(workdir),
            Checkpoints(workdir, run.config, run.mixture.fingerprint()) as checkpoints,
        ):
            state, first_step = checkpoints.restore(run.setup.shapes) or (None, 0)
            # A stop, or a kill, may have come between a checkpoint and the evaluation that was due then.
            unevaluated = hosts.as_first(_is_due(run, first_step) and not _is_evaluated(run, first_step))
            if first_step >= run.steps and not unevaluated:
                hosts.first_says(f"{workdir}: already trained for {first_step} steps")
                return
            if state is None:
                if (workdir / METRICS).exists():
                    hosts.first_says(f"warning: {workdir}: there are metrics and no checkpoint, so both begin anew")
                state = run.setup.init(run.init_key)
                if run.initial:
                    state, taken = start_from(state, run.initial, config.objective)
                    hosts.first_says(f"{config.init}: {taken}")
            elif int(state.skipped) > run.experiment.skip_at_most:
                raise InputError(
                    f"{workdir}: {int(state.skipped)} steps that were not finite have been left out so far: set "
                    "config.on_nonfinite=skip, and config.skip_at_most to no less than that"
                )
            else:
                hosts.first_says(f"{workdir}: carrying on from step {first_step}")
            if profile and not first_step < profile[0] <= run.steps:
                hosts.first_says(
                    f"warning: --profile: no trace is made, as step {profile[0]} is none of those that are made now, "
                    f"{first_step + 1} to {run.steps}"
                )
            hosts.first_says(run.about())
            add_start(run, first_step)
            with ExitStack() as stack:
                metrics = None
                if hosts.is_first():
                    metrics = Metrics(workdir, first_step, project=wandb_project, config=run.config.to_dict())
                    stack.callback(metrics.close)
                step, stopped_by = _loop(run, checkpoints, state, first_step, metrics, profile, unevaluated)
        if hosts.is_first() and step > first_step:
            rich_print(summary(read_metrics(workdir / METRICS), first_step))
        if stopped_by == signal.SIGINT:
            hosts.first_says(f"{workdir}: step {step} is saved")
            raise KeyboardInterrupt
        if stopped_by:
            hosts.first_says(f"{workdir}: SIGTERM: step {step} is saved; the same command carries on from there")
        else:
            hosts.first_says(f"{workdir}: trained for {run.steps} steps")


def _loop(
    run: Run,
    checkpoints: Checkpoints,
    state: TrainState,
    first_step: int,
    metrics: Metrics | None,
    profile: tuple[int, int] | None,
    unevaluated: bool,
) -> tuple[int, int | None]:
    """Steps from `first_step` on, to the end or until asked to stop; returns the last one, and the signal if any.

    unevaluated: whether the state is to be evaluated before.
    """
    config, key = run.config, run.step_key
    evaluate = make_evaluation(config, run.experiment, run.setup.model, run.examples, run.held_out)
    speed = Speed(first_step, pairs=run.experiment.records, flops=run.flops, compute_dtype=config.compute_dtype)
    in_flight: collections.deque[jax.Array] = collections.deque(maxlen=AHEAD)
    skipped, told = int(state.skipped), first_step

    with (
        Display(run.steps, first_step) as display,
        closing(run.batches(first_step)) as data,
        hosts.Preemption() as preemption,
    ):

        def report(step: int, found: dict[str, jax.Array]) -> None:
            """Waits for the metrics of `step` if need be, and tells them."""
            nonlocal skipped, told
            told = step
            numbers = {name: float(value) for name, value in found.items()}
            nonfinite_step, before = int(numbers.pop("nonfinite_step")), skipped
            skipped = int(numbers["skipped"])
            numbers |= speed.report(step)
            if metrics:
                metrics.write(step, numbers)
            display.show(step, numbers)
            if skipped > before:
                _tell_nonfinite(run, nonfinite_step, numbers, checkpoints, display)

        def evaluate_at(step: int) -> None:
            with speed.paused():
                display.advance(step, "evaluating")
                evaluate(step, state.params if state.average is None else state.average, metrics)

        step = first_step
        if unevaluated:
            evaluate_at(step)
        # Metrics are fetched a step late: while the host waits for them, the next step is already under way.
        late, tracing = None, False
        for step in range(first_step + 1, run.steps + 1):
            if profile and step == profile[0] and hosts.is_first():
                jax.profiler.start_trace(str(run.workdir / PROFILE))
                tracing = True
            try:
                batch, stalled = data.take(lambda: bool(in_flight) and not in_flight[-1].is_ready())
            except InputError as error:
                # Of several processes the others may have gone on to the next step.
                if jax.process_count() > 1 or step - 1 in (0, checkpoints.newest()):
                    raise
                if told < step - 1:
                    report(step - 1, found)  # stops the run if that was not finite
                checkpoints.save(step - 1, state)
                raise type(error)(f"{error}; step {step - 1} is saved, the same command carries on from it") from error
            speed.stalled(stalled)
            if len(in_flight) == AHEAD:
                in_flight[0].block_until_ready()
            state, found = run.setup.step(state, batch, key)
            in_flight.append(found["loss"])
            display.advance(step)
            if late:
                report(*late)
                late = None
            stops = preemption.reached(step)
            ends = step == run.steps or stops
            saves = ends or step % config.checkpoint_every == 0
            evaluates = _is_due(run, step) and (step == run.steps or not stops)
            if saves or evaluates:
                report(step, found)  # both wait for the step anyway
            elif step % config.log_every == 0 or step == 1:
                late = (step, found)
            if tracing and (step == profile[1] or ends):
                found["loss"].block_until_ready()
                jax.profiler.stop_trace()
                tracing = False
            if saves:  # first: there may be little time
                checkpoints.save(step, state)
            if evaluates:
                evaluate_at(step)
            if stops:
                display.advance(step, "saving")
                break
        checkpoints.wait()
        return step, preemption.signal if step < run.steps else None


def _is_due(run: Run, step: int) -> bool:
    """Whether there is an evaluation after a step."""
    every = run.config.eval.every
    return bool(run.held_out and every and step) and (step == run.steps or step % every == 0)


def _is_evaluated(run: Run, step: int) -> bool:
    path = run.workdir / METRICS
    lines = read_metrics(path) if path.exists() else []
    return any(line["step"] == step and "evaluation" in line for line in lines)


def _tell_nonfinite(run: Run, step: int, numbers: dict, checkpoints: Checkpoints, display: Display) -> None:
    """Warns of the last step that was left out, or stops the run where there were too many."""
    names = run.names(step)
    path = run.workdir / NONFINITE
    if hosts.is_first():
        files.write(path, (json.dumps({"step": step, "pairs": names}, indent=2) + "\n").encode())
    hosts.wait("nonfinite")
    said = f"{run.workdir}: at step {step} the loss or its gradient was not finite"
    said += f"; its pairs are in {path}: {names[0]}, …"
    limit = run.experiment.skip_at_most
    if numbers["skipped"] <= limit:
        display.say(f"warning: {said} (left out, as {numbers['skipped']:.0f} of at most {limit})")
        return
    checkpoints.wait()
    newest = checkpoints.newest()
    kept = f"The newest checkpoint is of step {newest}" if newest else "There is no checkpoint yet"
    raise InputError(
        f"{said} {kept}. Try a lower config.optimizer.base_learning_rate in another --workdir, or here "
        "--config.on_nonfinite=skip" + (f" with a higher config.skip_at_most than {limit}" if limit else "")
    )
