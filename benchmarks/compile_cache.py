"""How long a run takes from its start to its first step, without and with the programs that an earlier start compiled.

    python -m benchmarks.compile_cache --config=croco_tiny --batch=4

Starts launch.pretrain for one step, twice and with one folder of compiled programs, in processes of their own; prints
the seconds until the first step is in metrics.jsonl, and their ratio. The dataset is made of noise.
Each repeat has a new folder; the median counts.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks.input_pipeline import make_dataset
from mimic_jax import command

ROOT = Path(__file__).parents[1]
PAIRS, SIZE = 16, 256


def main() -> None:
    first, second = [], []
    for _ in range(flags.FLAGS.repeats):
        with tempfile.TemporaryDirectory() as folder:
            make_dataset(Path(folder) / "pairs", PAIRS, SIZE)
            for number, seconds in enumerate((first, second)):
                seconds.append(seconds_to_first_step(Path(folder), Path(folder) / f"run{number}"))
    table = Table("start", "seconds to the first step: median", "each", title=flags.FLAGS.config)
    for name, seconds in (("first", first), ("second", second)):
        table.add_row(name, f"{statistics.median(seconds):.1f}", ", ".join(f"{each:.1f}" for each in seconds))
    console = Console()
    console.print(table)
    print(f"ratio: {statistics.median(second) / statistics.median(first):.2f}")


def seconds_to_first_step(folder: Path, workdir: Path) -> float:
    """Seconds from the start of the process until the first step is reported."""
    fields = {
        "data.train": folder / "pairs",
        "run.compile_cache": folder / "cache",
        "batch_size": flags.FLAGS.batch,
        "steps": 1,
        "optimizer.warmup_steps": 0,
        "optimizer.total_steps": 1,
        "evals.completion.every": 0,
        "evals.correspondence.every": 0,
    }
    words = ["launch.pretrain", f"--config=configs/{flags.FLAGS.config}.py", f"--workdir={workdir}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    metrics, began = workdir / "metrics.jsonl", time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll():
                raise command.InputError(f"launch.pretrain ended with {process.returncode}: see above")
            time.sleep(0.01)
        return time.perf_counter() - began


if __name__ == "__main__":
    flags.DEFINE_string("config", "croco_tiny", "A file of configs/.")
    flags.DEFINE_integer("batch", 4, "Pairs of the step.", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "Repeats.", lower_bound=1)
    command.run(main)
