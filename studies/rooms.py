"""Depth and normals on rooms that were never seen: from scratch, with a frozen pre-trained encoder, and fine-tuned.

    python -m studies.rooms --init=demo/run --output=out/rooms

Films rooms with ground truth, labels them, trains every regime with several seeds, and prints a table of mean and
standard deviation over seeds, with the prediction of one constant beside it. The weights are those of `make demo`.
Each stage is a command that can be run alone; interrupted, the same command resumes.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mimic_jax import command, files
from mimic_jax.metrics_file import METRICS, read_metrics

INIT = flags.DEFINE_string("init", "demo/run", "Pre-trained weights: the workdir of the demo, say.")
OUTPUT = flags.DEFINE_string("output", "out/rooms", "Where everything goes.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each regime.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 300, "Steps of each run.", lower_bound=1)
ROOMS = flags.DEFINE_integer("rooms", 32, "Rooms to train on.", lower_bound=2)
HELD_OUT = flags.DEFINE_integer("held_out", 8, "Rooms to measure on.", lower_bound=1)

# Sizes of the demo's encoder, for the runs from scratch.
ENCODER = {
    "encoder_width": 128,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "patch_size": 8,
    "positions": "rope100",
    "class_token": False,
}
SMALL = {
    "batch_size": 16,
    "compute_dtype": "float32",
    "data.size": 72,
    "data.crop": 64,
    "data.jitter": 0.2,
    "optimizer.learning_rate": 2e-3,
    "run.log_every": 50,
    "run.checkpoint_every": 1000,
    "run.keep_best": False,
    "run.threads": 2,
}
FROZEN = "(('encoder/.*', 0.0),)"
REGIMES = ("from scratch", "frozen", "fine-tuned")
# The metrics of the table: the mean over images.
METRICS_OF = {
    "depth": ("depth_absrel", "depth_rmse", "depth_delta1"),
    "normals": ("normals_mean", "normals_median", "normals_within_30"),
}

console = Console()


def main() -> None:
    output, started = Path(OUTPUT.value), time.monotonic()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((output / "compiled").absolute()))
    for part, rooms, seed in (("train", ROOMS.value, 2), ("held_out", HELD_OUT.value, 3)):
        films = output / "films" / part
        shape = ["--frames=48", "--fps=10", "--size=96", "--ground_truth"]
        _run("data_prep.film", f"--output={films}", f"--scenes={rooms}", f"--seed={seed}", *shape)
        _run("data_prep.label", "--source=worlds", f"--input={films}", f"--output={output / part}", "--every=6")
    for task in METRICS_OF:
        for regime in REGIMES:
            for seed in range(SEEDS.value):
                _run("launch.finetune", *_flags(task, regime, seed, output))
    results = {task: _results(task, output) for task in METRICS_OF}
    minutes = (time.monotonic() - started) / 60
    files.write(output / "results.json", (json.dumps(results | {"minutes": minutes}, indent=2) + "\n").encode())
    for task, rows in results.items():
        console.print(_table(task, rows))
    console.print(f"{minutes:.1f} minutes; {output / 'results.json'}")


def _flags(task: str, regime: str, seed: int, output: Path) -> list[str]:
    fields = SMALL | {
        "seed": seed,
        "steps": STEPS.value,
        "optimizer.warmup_steps": STEPS.value // 10,
        "optimizer.total_steps": STEPS.value,
        "data.train": output / "train",
        "data.validation": output / "held_out",
        f"evals.{task}.every": STEPS.value,
        f"{task}.dpt_features": 32,
        f"{task}.dpt_stages": "(16, 32, 64, 64)",
    }
    if regime == "from scratch":
        fields |= {f"model.{name}": value for name, value in ENCODER.items()} | {"optimizer.layer_decay": 1.0}
    else:
        fields["init"] = INIT.value
    if regime == "frozen":
        fields |= {"optimizer.multipliers": FROZEN, f"{task}.drop_path": 0.0}
    return [
        f"--config=configs/finetune/{task}.py",
        f"--workdir={_workdir(task, regime, seed, output)}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def _workdir(task: str, regime: str, seed: int, output: Path) -> Path:
    return output / "runs" / f"{task}_{regime.replace(' ', '_')}_{seed}"


def _results(task: str, output: Path) -> dict[str, dict[str, list[float]]]:
    """By regime and metric, the values of all seeds; the constant has one."""
    found = {"constant": {name: [value] for name, value in _constant(task, output).items()}}
    for regime in REGIMES:
        ends = []
        for seed in range(SEEDS.value):
            lines = read_metrics(_workdir(task, regime, seed, output) / METRICS)
            ends.append(next(line["evaluation"] for line in reversed(lines) if "evaluation" in line))
        found[regime] = {name: [end[name] for end in ends] for name in METRICS_OF[task]}
    return found


def _constant(task: str, output: Path) -> dict[str, float]:
    """The metrics of predicting, everywhere, the mean of the head's targets over the training set."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from launch.workdirs import load_trained
    from mimic_jax.data.images import images_source
    from mimic_jax.data.mixture import all_examples, open_mixture
    from mimic_jax.data.source import read_rows

    class Constant(nnx.Module):
        """Predicts one value per channel, whatever the image."""

        def __init__(self, value):
            self.value = nnx.Param(jnp.asarray(value, jnp.float32))

        def __call__(self, images):
            return jnp.broadcast_to(self.value, (*images.shape[:3], len(self.value)))

    trained = load_trained(_workdir(task, REGIMES[0], 0, output))
    source = images_source(
        all_examples(open_mixture(str(output / "train"), "data", "images")), size=(72, 72), labels=(task,)
    )
    labels = read_rows(source, range(len(source)))[task]
    # Depth is predicted as ln metres, normals as (n + 1) / 2.
    targets = np.log(labels[labels > 0])[:, None] if task == "depth" else (labels[(labels != 0).any(-1)] + 1) / 2
    model = Constant(targets.mean(0))
    evaluation = trained.task.evaluations(str(output / "held_out"), 32)(model, None)[task]
    numbers = evaluation.run(nnx.to_pure_dict(nnx.state(model))).numbers
    return {name: numbers[name] for name in METRICS_OF[task]}


def _table(task: str, rows: dict[str, dict[str, list[float]]]) -> Table:
    table = Table(task, *METRICS_OF[task], title=f"{HELD_OUT.value} rooms held out, {SEEDS.value} seeds")
    for regime, metrics in rows.items():
        cells = []
        for values in metrics.values():
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}")
        table.add_row(regime, *cells)
    return table


def _run(module: str, *options: str) -> None:
    console.print(f"python -m {module} {' '.join(options)}", style="dim", highlight=False, soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", module, *options], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    command.run(main)
