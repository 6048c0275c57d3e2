"""Puts training runs side by side: how far they are, what they found, where their configs differ; and their curves.

    python -m launch.runs run other_run --picture=runs.png
    python -m launch.runs --finished run    # for scripts: prints nothing; exit code 0, or 3 where steps are left

A run is a workdir of launch.pretrain, under way or done.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimic_jax import command
from mimic_jax.metrics_file import METRICS, read_metrics, training_lines
from mimic_jax.renamed import flatten, upgraded_fields
from mimic_jax.workdir import CONFIG, ENVIRONMENT, read_config, saved_steps

PICTURE = flags.DEFINE_string("picture", "runs.png", "Where the curves go; empty: nowhere.")
FINISHED = flags.DEFINE_boolean("finished", False, "Only tell, by the exit code, whether all runs did all their steps.")

# Exit code of --finished; 1 is a fault of the program, 2 a mistake.
STEPS_LEFT = 3

# The numbers of evaluations that one would choose a run by, and whether the least or the greatest is the best.
CHOSEN = {
    "error": min,
    "ratio": min,
    "psnr": max,
    "correspondence_within_1": max,
    "correspondence_best_layer_within_1": max,
    "features_within_1": max,
    "depth_absrel": min,
    "depth_delta1": max,
    "normals_mean": min,
}
ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir tells.

    config: resolved, by fields' names with dots, as the newest start has it.
    lines, evaluations: of the metrics, those about training and those about evaluations.
    starts: an entry for each time that the run was started; empty for runs of before these were written.
    saved: the step of the newest checkpoint, 0 where there is none.
    """

    name: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    saved: int

    @property
    def steps(self) -> int | None:
        """The last step of the run; None where its length is in epochs and it was not written down."""
        told = self.starts[-1].get("steps") if self.starts else None
        return told or self.config.get("steps")


def main(*workdirs: str) -> None:
    folders = [Path(workdir).expanduser() for workdir in workdirs]
    if FINISHED.value:
        if not all(map(finished, folders)):
            sys.exit(STEPS_LEFT)
        return
    resolved = [folder.resolve() for folder in folders]
    for place, folder in enumerate(folders):
        if resolved[place] in resolved[:place]:
            raise command.InputError(f"{folder} is given twice")
    short = len({folder.name for folder in resolved}) == len(folders)
    runs = [
        read_run(folder, absolute.name if short else str(folder))
        for folder, absolute in zip(folders, resolved, strict=True)
    ]
    console = Console()
    console.print(_table(runs, "Runs", _numbers(runs)), highlight=False)
    different = differences([run.config for run in runs])
    if different:
        console.print(_table(runs, "Where their configs differ", different), highlight=False)
    elif len(runs) > 1:
        console.print("Their configs do not differ.")
    if PICTURE.value:
        _draw(runs, Path(PICTURE.value), console)


def read_run(workdir: Path, name: str) -> Run:
    """What there is in a workdir, of whatever age.

    Raises:
      InputError: there is no config.json, or a file is damaged.
    """
    if not (workdir / CONFIG).is_file():
        raise command.InputError(
            f"{workdir} is not a workdir of launch.pretrain or launch.finetune: it has no {CONFIG}"
        )
    metrics = workdir / METRICS
    lines = read_metrics(metrics) if metrics.is_file() else []
    started = workdir / ENVIRONMENT
    starts = _read(started, list) if started.is_file() else []
    return Run(
        name=name,
        config=flatten(read_config(workdir)) | upgraded_fields(starts[-1].get("config", {}) if starts else {}),
        lines=training_lines(lines),
        evaluations=[line for line in lines if "evaluation" in line],
        starts=starts,
        saved=max(saved_steps(workdir), default=0),
    )


def finished(workdir: Path) -> bool:
    """Whether the checkpoint of a run's last step is there.

    Raises:
      InputError: a file is damaged, or the run does not tell how many steps it has.
    """
    # A run that was stopped before it had a workdir has all its steps left.
    if not (workdir / CONFIG).exists():
        return False
    run = read_run(workdir, workdir.name)
    if run.steps is None:
        raise command.InputError(f"{workdir} does not tell how many steps it has: its length is in epochs")
    return run.saved >= run.steps


def differences(configs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The fields in which configs differ, each given by fields' names with dots, and the value in each of them."""
    names = dict.fromkeys(name for fields in configs for name in fields)
    rows = [(name, [json.dumps(fields[name]) if name in fields else ABSENT for fields in configs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def curves(runs: list[Run]) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """For each quantity that some run has, its name, and by the run's name the steps and the values."""
    found = {}
    for name in ("loss", "learning_rate", *CHOSEN):
        of_runs = {run.name: _values(run, name) for run in runs}
        lines = {run: ([step for step, _ in points], [value for _, value in points]) for run, points in of_runs.items()}
        if lines := {run: line for run, line in lines.items() if line[0]}:
            found[name.replace("_", " ")] = lines
    return found


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise command.InputError(f"{path}: is damaged")
    return value


def _values(run: Run, name: str) -> list[tuple[int, float]]:
    """Steps and values of a number of training, or of an evaluation."""
    if name in CHOSEN:
        return [(line["step"], line["evaluation"][name]) for line in run.evaluations if name in line["evaluation"]]
    return [(line["step"], line[name]) for line in run.lines if name in line]


def _numbers(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """What is to be told of each run, a row for each that some run has."""
    units = sorted(
        {
            name.removesuffix("_per_second")
            for run in runs
            for line in run.lines
            for name in line
            if name.endswith("_per_second")
        }
    )
    rows = [
        ("task", _task),
        ("encoder", lambda run: _stack(run, "encoder")),
        ("decoder", lambda run: _stack(run, "decoder")),
        ("batch", lambda run: str(run.config.get("batch_size", ABSENT))),
        ("step", lambda run: f"{run.lines[-1]['step'] if run.lines else 0} of {run.steps or 'an unknown number'}"),
        ("saved", lambda run: str(run.saved or ABSENT)),
        ("loss", lambda run: f"{run.lines[-1]['loss']:.4g}" if run.lines else "no metrics yet"),
        *[(name.replace("_", " "), lambda run, name=name: _best(run, name)) for name in CHOSEN],
        *[(f"{unit} a second", lambda run, unit=unit: _median(run, f"{unit}_per_second", ".1f")) for unit in units],
        ("of peak FLOP/s (MFU)", lambda run: _median(run, "mfu", ".1%")),
        ("TFLOP/s a chip", lambda run: _median(run, "teraflops_per_chip", ".4g")),
        ("waiting for input", lambda run: _median(run, "input_stall", ".1%")),
        ("GiB a chip", lambda run: _median(run, "memory_gib", ".2f")),
        ("first started", lambda run: str(run.starts[0].get("started", ABSENT)) if run.starts else ABSENT),
        ("on", lambda run: str(run.starts[-1].get("devices", ABSENT)) if run.starts else ABSENT),
        ("starts", lambda run: str(len(run.starts) or ABSENT)),
    ]
    told = [(name, [tell(run) for run in runs]) for name, tell in rows]
    return [(name, values) for name, values in told if set(values) != {ABSENT}]


def _task(run: Run) -> str:
    kind = run.config.get("model.kind")
    return f"{run.config.get('task', ABSENT)} ({kind})" if kind else str(run.config.get("task", ABSENT))


def _stack(run: Run, name: str) -> str:
    depth, width = (run.config.get(f"model.{name}_{size}") for size in ("depth", "width"))
    return f"{depth} layers of {width}" if depth and width else ABSENT


def _best(run: Run, name: str) -> str:
    """The last value, and the best with its step where that is another one."""
    points = _values(run, name)
    if not points:
        return ABSENT
    last, best = points[-1], CHOSEN[name](points, key=lambda point: point[1])
    text = f"{last[1]:.4g}"
    return text if best[1] == last[1] else f"{text} (best {best[1]:.4g} at step {best[0]})"


def _median(run: Run, name: str, form: str) -> str:
    values = [value for _, value in _values(run, name)]
    return format(statistics.median(values), form) if values else ABSENT


def _table(runs: list[Run], title: str, rows: list[tuple[str, list[str]]]) -> Table:
    # As Text: brackets in a path or a list are not rich's markup.
    table = Table("", title=title)
    for run in runs:
        table.add_column(Text(run.name))
    for name, values in rows:
        table.add_row(name, *map(Text, values))
    return table


def _draw(runs: list[Run], path: Path, console: Console) -> None:
    found = curves(runs)
    if not found:
        console.print("No run has metrics yet: there are no curves to draw.")
        return
    # Imported here: matplotlib is slow to come.
    from mimic_jax.viz.curves import draw_curves, save

    save(draw_curves(found), path)
    console.print(f"Curves: {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    command.run(main, positional=("WORKDIR…",))
