"""Training, from a config to a workdir: the same on one device and on many hosts, and for every task."""

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
from mimic_jax.metrics_file import METRICS, read_metrics
from mimic_jax.task import Evaluation, Results
from mimic_jax.training.best import best_results, write_best
from mimic_jax.training.checkpoint import Checkpoints, writing
from mimic_jax.training.metrics import Metrics
from mimic_jax.training.progress import Display, Throughput, summary
from mimic_jax.training.provenance import log_start
from mimic_jax.training.run import MakeTask, Run, check_initial, open_run
from mimic_jax.training.state import TrainState, start_from
from mimic_jax.training.workdir_lock import claim_workdir, locked

# Steps that the host may be ahead of the devices.
AHEAD = 2
NONFINITE = "nonfinite.json"
PROFILE = "profile"


def train(
    config: ConfigDict,
    workdir: Path,
    make: MakeTask,
    *,
    profile: tuple[int, int] | None = None,
    wandb_project: str = "",
) -> None:
    """Trains a task to the end of the config's run, from the newest checkpoint in the workdir if there is one.

    SIGTERM, to any process of the run, ends it after a step, with a checkpoint. So does Ctrl-C where there is one
    process, and is then raised; several end at once.

    Args:
      config: as in configs/; every field is used.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `config.json`, `model.json`, `data.json`,
        `environment.json`, `best.json`; and if need be `damaged/`, `nonfinite.json` and `profile/`. All hosts see it.
      make: makes the task that the config names; see mimic_jax/tasks.
      profile: the first and the last step of a trace of the devices, which goes to `profile/` in the workdir.
      wandb_project: of Weights & Biases; empty for none.

    Raises:
      InputError: a field of the config, the dataset or the workdir cannot be used, or the loss is no longer finite.
    """
    with hosts.ending_together():
        run = open_run(config, workdir, make)
        # Nothing is written before all of the config is known to work.
        claim_workdir(run)
        with writing(workdir), locked(workdir), Checkpoints(run) as checkpoints:
            state, first_step = checkpoints.restore(run.setup.shapes) or (None, 0)
            evaluations = run.opened.evaluations(run.setup.model, run.setup.layout)
            # A stop, or a kill, may have come between a checkpoint and the evaluations that were due then.
            missed = _missed(run, evaluations, first_step)
            if first_step >= run.lengths.steps and not missed:
                hosts.first_says(f"{workdir}: already trained for {first_step} steps")
                return
            state = _start(run, state, first_step)
            first, last = profile or (0, 0)
            if profile and not first_step < first <= run.lengths.steps:
                profile = None
                steps = f"steps {first_step + 1} to {run.lengths.steps} are left"
                if first_step >= run.lengths.steps:
                    steps = "no step is left"
                hosts.first_says(f"warning: --profile={first}:{last}: no trace is made, as {steps}")
            hosts.first_says(run.about())
            log_start(run, first_step)
            with ExitStack() as stack:
                metrics = None
                if hosts.is_first():
                    metrics = Metrics(workdir, first_step, project=wandb_project, config=run.config.to_dict())
                    stack.callback(metrics.close)
                loop = _Loop(run, checkpoints, evaluations, metrics, first_step)
                step, stopped_by = loop.run_from(state, missed, profile)
        if hosts.is_first() and step > first_step:
            rich_print(summary(read_metrics(workdir / METRICS), first_step, run.task.unit))
        if stopped_by == signal.SIGINT:
            hosts.first_says(f"{workdir}: step {step} is saved")
            raise KeyboardInterrupt
        if stopped_by:
            hosts.first_says(f"{workdir}: SIGTERM: step {step} is saved; the same command resumes from there")
        else:
            hosts.first_says(f"{workdir}: trained for {run.lengths.steps} steps")


def _start(run: Run, state: TrainState | None, first_step: int) -> TrainState:
    """The restored state, or a fresh one."""
    if state is None:
        if (run.workdir / METRICS).exists():
            hosts.first_says(f"warning: {run.workdir}: there are metrics and no checkpoint, so both start from scratch")
        state = run.setup.init(run.init_key)
        if run.initial:
            state, message = start_from(state, run.initial, check_initial(run.initial, run.task))
            hosts.first_says(f"{run.settings.experiment.init}: {message}")
        return state
    if int(state.skipped) > run.settings.run.skips:
        raise InputError(
            f"{run.workdir}: {int(state.skipped)} steps that were not finite have been skipped so far: set "
            "config.run.on_nonfinite=skip, and config.run.max_skipped to no less than that"
        )
    hosts.first_says(f"{run.workdir}: resuming from step {first_step}")
    return state


class _Loop:
    """The steps of a run."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        evaluations: dict[str, Evaluation],
        metrics: Metrics | None,
        first_step: int,
    ):
        self._run, self._checkpoints, self._evaluations, self._metrics = run, checkpoints, evaluations, metrics
        self._first_step = first_step
        self._throughput = Throughput(
            first_step,
            records=run.records,
            unit=run.task.unit,
            flops=sum(run.task.flops.values()),
            compute_dtype=run.settings.experiment.compute_dtype,
        )
        self._display = Display(run.lengths.steps, first_step, run.task.unit)
        # Of the steps since the last report: how many were skipped up to each.
        self._skipped: list[tuple[int, jax.Array]] = []
        self._reported, self._skipped_before = first_step, 0

    def run_from(self, state: TrainState, missed: list[str], profile: tuple[int, int] | None) -> tuple[int, int | None]:
        """Steps to the end or until asked to stop; returns the last step, and the signal if any.

        missed: evaluations that are run before the first step.
        """
        run, settings, key = self._run, self._run.settings.run, self._run.step_key
        in_flight: collections.deque[jax.Array] = collections.deque(maxlen=AHEAD)
        self._skipped_before = int(state.skipped)
        self._keep_best()
        with self._display, closing(run.batches(self._first_step)) as data, hosts.Preemption() as preemption:
            step = self._first_step
            if missed:
                self._evaluate(step, state, missed)
            # Metrics are fetched a step late: while the host waits for them, the next step is already under way.
            late, tracing, found = None, False, {}
            for step in range(self._first_step + 1, run.lengths.steps + 1):
                if profile and step == profile[0] and hosts.is_first():
                    jax.profiler.start_trace(str(run.workdir / PROFILE))
                    tracing = True
                try:
                    batch, stalled = data.take(lambda: bool(in_flight) and not in_flight[-1].is_ready())
                except InputError as error:
                    self._save_before(step, state, found, error)
                self._throughput.stalled(stalled)
                if len(in_flight) == AHEAD:
                    in_flight[0].block_until_ready()
                state, found = run.setup.step(state, batch, key)
                in_flight.append(found["loss"])
                self._skipped.append((step, found["skipped"]))
                self._display.advance(step)
                if late:
                    self._report(*late)
                    late = None
                stops = preemption.reached(step)
                ends = step == run.lengths.steps or stops
                due = _due(self._evaluations, step, run.lengths.steps) if not stops or step == run.lengths.steps else []
                saves = ends or step % settings.checkpoint_every == 0
                saves = saves or (settings.keep_best and any(self._evaluations[name].best for name in due))
                if saves or due:
                    self._report(step, found)  # both wait for the step anyway
                elif step % settings.log_every == 0 or step == 1:
                    late = (step, found)
                if tracing and (step == profile[1] or ends):
                    found["loss"].block_until_ready()
                    jax.profiler.stop_trace()
                    tracing = False
                if saves:  # first: there may be little time
                    self._checkpoints.save(step, state)
                if due:
                    self._evaluate(step, state, due)
                if stops:
                    self._display.advance(step, "saving")
                    break
            self._checkpoints.wait()
            return step, preemption.signal if step < run.lengths.steps else None

    def _report(self, step: int, found: dict[str, jax.Array]) -> None:
        """Waits for the metrics of a step if need be, and reports them."""
        self._reported = step
        numbers = {name: float(value) for name, value in found.items()} | self._throughput.report(step)
        if self._metrics:
            self._metrics.write(step, numbers)
        self._display.show(step, numbers)
        if int(numbers["skipped"]) > self._skipped_before:
            self._report_nonfinite(step, int(numbers["skipped"]))
        self._skipped = [(later, count) for later, count in self._skipped if later > step]
        self._skipped_before = int(numbers["skipped"])

    def _evaluate(self, step: int, state: TrainState, due: list[str]) -> None:
        with self._throughput.paused():
            self._display.advance(step, "evaluating")
            results = {name: self._evaluations[name].run(state.values()) for name in due}
            numbers = merge_numbers(results)
            if self._metrics:
                self._metrics.write_evaluation(step, numbers)
                for found in results.values():
                    for name, picture in found.pictures.items():
                        self._metrics.add_picture(step, name, picture)
            self._keep_best()

    def _keep_best(self) -> None:
        """Writes the best results so far, and keeps their checkpoints where the config says so."""
        best = {}
        if self._metrics and (best := best_results(read_metrics(self._run.workdir / METRICS), self._evaluations)):
            write_best(self._run.workdir, best)
        if self._run.settings.run.keep_best:
            names = [name for name, evaluation in self._evaluations.items() if evaluation.best]
            self._checkpoints.keep({hosts.as_first(best[name]["step"] if name in best else 0) for name in names})

    def _save_before(self, step: int, state: TrainState, found: dict[str, jax.Array], error: InputError) -> None:
        """Saves the state before a batch that cannot be read, and raises the error."""
        # One of several processes cannot: the others may have gone on to the next step.
        if jax.process_count() > 1 or step - 1 in (0, self._checkpoints.newest()):
            raise error
        if self._reported < step - 1:
            self._report(step - 1, found)  # stops the run if that was not finite
        self._checkpoints.save(step - 1, state)
        raise type(error)(f"{error}; step {step - 1} is saved, the same command resumes from it") from error

    def _report_nonfinite(self, step: int, skipped: int) -> None:
        """Warns of the steps that were skipped since the last report, or stops the run where there are too many."""
        run, before, steps = self._run, self._skipped_before, []
        for number, count in self._skipped:
            if number <= step and int(count) > before:
                steps.append(number)
                before = int(count)
        path = run.workdir / NONFINITE
        examples = {number: run.names(number) for number in steps}
        if hosts.is_first():
            listed = _nonfinite_before(path, steps[0])
            listed += [{"step": number, run.task.unit: names} for number, names in examples.items()]
            files.write(path, (json.dumps(listed, indent=2) + "\n").encode())
        hosts.wait("nonfinite")
        first = examples[steps[0]][0]
        where = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(map(str, steps))}"
        message = f"{run.workdir}: at {where} the loss or its gradient was not finite"
        message += f"; the {run.task.unit} are listed in {path}: {first}, …"
        limit = run.settings.run.skips
        if skipped <= limit:
            self._display.say(f"warning: {message} (skipped: {skipped} of at most {limit})")
            return
        self._checkpoints.wait()
        newest = self._checkpoints.newest()
        kept = f"The newest checkpoint is of step {newest}" if newest else "There is no checkpoint yet"
        raise InputError(
            f"{message}. {kept}. Try a lower learning rate (config.optimizer) in another --workdir, or here "
            "--config.run.on_nonfinite=skip" + (f" with a higher config.run.max_skipped than {limit}" if limit else "")
        )


def merge_numbers(results: dict[str, Results]) -> dict[str, float]:
    """The numbers of several evaluations in one table, whose names must differ."""
    merged: dict[str, float] = {}
    for name, found in results.items():
        if twice := merged.keys() & found.numbers.keys():
            raise ValueError(f"evaluation {name!r} reports {sorted(twice)}, as another one does")
        merged |= found.numbers
    return merged


def _nonfinite_before(path: Path, step: int) -> list[dict]:
    """The entries of nonfinite.json about earlier steps; none where there is no such list, or it is damaged."""
    try:
        return [entry for entry in json.loads(path.read_text()) if entry["step"] < step]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _due(evaluations: dict[str, Evaluation], step: int, steps: int) -> list[str]:
    """The evaluations after a step."""
    return [
        name for name, each in evaluations.items() if step and each.every and (step == steps or step % each.every == 0)
    ]


def _missed(run: Run, evaluations: dict[str, Evaluation], step: int) -> list[str]:
    """The evaluations that were due at a step and are not among its metrics."""
    path = run.workdir / METRICS
    lines = read_metrics(path) if path.exists() else []
    done = any(line["step"] == step and "evaluation" in line for line in lines)
    return [] if hosts.as_first(done) else _due(evaluations, step, run.lengths.steps)
