"""The whole road in one command: film rooms, mine pairs, pre-train a tiny CroCo, show what it learned.

    python -m launch.demo --output=demo
    python -m launch.demo --output=demo --videos=FOLDER    # your own videos, at least two

Each stage is a command that can be run alone; it is printed before it runs. Interrupted, the same command carries on.
"""

import fcntl
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cv2
from absl import flags
from rich.console import Console
from rich.table import Table

from data_prep.sources import video
from data_prep.sources.scene import walk
from mimic_jax import command, files

OUTPUT = flags.DEFINE_string("output", "demo", "Where everything goes.")
VIDEOS = flags.DEFINE_string("videos", None, "A folder of your own videos; rooms are filmed when it is not given.")
SCENES = flags.DEFINE_integer("scenes", 40, "Rooms to train on.", lower_bound=1)
HELD_OUT = flags.DEFINE_integer("held_out", 6, "Rooms to measure on; never trained on.", lower_bound=2)
FRAMES = flags.DEFINE_integer("frames", 48, "Frames of each room's video.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 400, "Training steps.", lower_bound=1)

CONFIG = Path(__file__).parents[1] / "configs" / "croco_tiny.py"
# Frames a second of the rooms' films. More would only cost time: few of them are looked at.
FPS = 10
# Frames of a short video that are compared, all with all. Many rooms teach more than many pairs of one room.
COMPARED_FRAMES = 14
# Comparing all frames grows with the square of their number: longer videos are compared step by step.
LONGEST_COMPARED = 60.0  # seconds

FEW_PAIRS = 300

console = Console()


def main() -> None:
    output = Path(OUTPUT.value)
    videos = _find_videos(Path(VIDEOS.value).expanduser()) if VIDEOS.value else []
    rooms = None if VIDEOS.value else [SCENES.value, HELD_OUT.value, FRAMES.value]
    # By their names and sizes: with other videos, one held out before could now be trained on.
    of_videos = [[str(path.resolve()), path.stat().st_size] for path in videos]
    lock = _claim(output, {"rooms": rooms, "videos": of_videos, "steps": STEPS.value})

    summary_file = output / "summary.json"
    if summary := _read_json(summary_file):
        _print_summary(summary, output)
        console.print(f"{output} is done already; remove it to start over.")
        return
    if VIDEOS.value:
        policy = _split_videos(videos, output / "videos")
    else:
        for part, scenes, seed in [("train", SCENES.value, 0), ("held_out", HELD_OUT.value, 1)]:
            options = [f"--scenes={scenes}", f"--frames={FRAMES.value}", f"--fps={FPS}", f"--seed={seed}"]
            _stage(lock, "film", "data_prep.film", f"--output={output / 'videos' / part}", *options)
        policy = ["--policy=exhaustive", f"--step={FRAMES.value / FPS / COMPARED_FRAMES:.3g}"]
    for part in ("train", "held_out"):
        places = f"--input={output / 'videos' / part}", f"--output={output / 'pairs' / part}"
        _stage(lock, "mine", "data_prep.mine", "--source=video", *places, *policy)
    _stage(
        lock,
        "pre-train",
        "launch.pretrain",
        f"--config={CONFIG}",
        f"--workdir={output / 'run'}",
        f"--config.data.train={output / 'pairs' / 'train'}",
        f"--config.data.validation={output / 'pairs' / 'held_out'}",
        f"--config.steps={STEPS.value}",
    )
    summary = _show(output)
    _write_json(summary_file, summary)
    _print_summary(summary, output)


def _claim(output: Path, started: dict):
    """Makes the folder this demo's, and waits for stages that an interrupted run may have left behind."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Stages inherit the lock: it is free once the last of them has ended.
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise command.InputError(f"--output={output} cannot be written ({error.strerror}); use another") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.print(f"{output} is in use; waiting for the run there to end …")
        fcntl.flock(lock, fcntl.LOCK_EX)
    made_with = output / "demo.json"
    if _read_json(made_with) not in (None, started):
        raise command.InputError(
            f"{output} was begun with other flags or videos; remove it, or name another with --output (make: OUTPUT=…)"
        )
    _write_json(made_with, started)
    return lock


def _read_json(path: Path) -> dict | None:
    """None where there is no such file, or a crash of the machine damaged it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, value: dict) -> None:
    files.write(path, (json.dumps(value, indent=2) + "\n").encode())


def _stage(lock, title: str, module: str, *options: str) -> None:
    console.rule(f"[bold]{title}")
    console.print(f"python -m {module} {' '.join(options)}", style="dim", highlight=False, soft_wrap=True)
    start = time.monotonic()
    process = subprocess.run([sys.executable, "-m", module, *options], pass_fds=[lock.fileno()], check=False)
    if process.returncode:
        sys.exit(process.returncode)
    console.print(f"{title}: {time.monotonic() - start:.0f} s", style="green")


def _find_videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise command.InputError(f"--videos={folder}: no such folder")
    unreadable: list[Path] = []
    found = [
        inside / name
        for inside, names, _ in walk(folder, unreadable)
        for name in names
        if Path(name).suffix.lower() in video.SUFFIXES and (inside / name).is_file()
    ]
    if unreadable:
        raise command.InputError(f"--videos: {unreadable[0]} cannot be read; check its permissions")
    if len(found) < 2:
        raise command.InputError(f"--videos={folder}: {len(found)} videos found; give at least two, as one is held out")
    return found


def _split_videos(videos: list[Path], output: Path) -> list[str]:
    """Links the reader's videos into train/ and held_out/, and chooses how their frames are compared."""
    held_out = max(1, len(videos) // 5)
    for index, path in enumerate(videos):
        part = output / ("held_out" if index >= len(videos) - held_out else "train")
        # Numbered, as videos of one name may lie in different folders.
        link = part / f"{index:04d}_{path.name}"
        part.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    longest = max(_duration(path) for path in videos)
    if longest > LONGEST_COMPARED:
        return ["--policy=step", "--step=0.5"]
    return ["--policy=exhaustive", f"--step={max(0.05, longest / COMPARED_FRAMES):.3g}"]


def _duration(path: Path) -> float:
    capture = cv2.VideoCapture(str(path))
    frames, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    return max(0.0, frames / rate) if rate > 0 else 0.0


def _show(output: Path) -> dict:
    """Draws the pictures and measures the model on the held-out pairs."""
    from launch.views import seen_at
    from mimic_jax.data.mixture import all_examples, open_mixture
    from mimic_jax.data.pairs import read_pairs
    from mimic_jax.evaluation.pairs import evaluate
    from mimic_jax.interop.load import load
    from mimic_jax.metrics_file import METRICS, read_metrics, training_lines
    from mimic_jax.viz import curves, pictures
    from mimic_jax.viz.reconstruction import make_drawer

    console.rule("[bold]show")
    train, held_out = (all_examples(open_mixture(str(output / "pairs" / part), part)) for part in ("train", "held_out"))
    weights = load(output / "run")
    model = weights.model()
    seen = dict(zip(("size", "crop"), seen_at(weights, None), strict=True))

    chosen = [len(train) * place // 4 for place in range(4)]
    shown = [[pictures.draw_pair(pair)] for pair in read_pairs(train, chosen)]
    pictures.save(pictures.grid(shown), output / "pairs.png")
    metrics = training_lines(read_metrics(output / "run" / METRICS))
    # Without the first step, whose loss of an untrained model would flatten the rest.
    loss = [line["step"] for line in metrics[1:]], [line["loss"] for line in metrics[1:]]
    curves.save(curves.draw_curves({"loss on hidden patches": {"run": loss}}, "Pre-training"), output / "loss.png")
    draw = make_drawer(model, held_out, rows=min(6, len(held_out)), **seen)
    pictures.save(draw(weights.params), output / "reconstruction.png")

    manifests = [examples.mixture.datasets[0].manifest() for examples in (train, held_out)]
    totals = [manifest["totals"] for manifest in manifests]
    # Where one video alone is held out, wrong views can only be of those trained on.
    found, _ = evaluate(model, held_out, others=train, **seen)
    return {
        "pairs_tried": sum(total["pairs_tried"] for total in totals),
        "pairs_kept": sum(total["pairs_kept"] for total in totals),
        "training_pairs": len(train),
        "steps": weights.about["step"],
        "pairs_per_second": round(statistics.median(line["pairs_per_second"] for line in metrics), 1),
        "first_loss": metrics[0]["loss"],
        "last_loss": metrics[-1]["loss"],
        "held_out_scenes": sum(entry["pairs_kept"] > 0 for entry in manifests[1]["scenes"].values()),
        "held_out_pairs": int(found["pairs"]),
        "error_with_right_view": found["error"],
        "error_with_wrong_view": found["error_wrong_view"],
        "error_with_black_view": found["error_black_view"],
        "ratio": found["ratio"],
        "patches_found_by_attention": found.get("correspondence_within_1"),
        "patches_found_by_the_best_layer": found.get("correspondence_best_layer_within_1"),
        "patches_found_by_chance": found.get("chance_within_1"),
    }


def _print_summary(summary: dict, output: Path) -> None:
    table = Table(title="What came out", show_header=False)
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(
        "A ratio of 1 is a model that ignores the second view; an error of 1, one that predicts flat patches."
    )
    if summary["training_pairs"] < FEW_PAIRS:
        console.print(f"Fewer than {FEW_PAIRS} pairs to train on: such a model learns them by heart. Give more videos.")
    console.print(f"Pictures: {output}/pairs.png, {output}/loss.png, {output}/reconstruction.png", soft_wrap=True)


if __name__ == "__main__":
    command.run(main)
