"""Measures a model: a pre-trained one on pairs, a fine-tuned one on the labels that its task predicts.

python -m launch.evaluate --workdir=DIR --data=DATASET
python -m launch.evaluate --weights=PATH --data=DATASET --output=FILE.json

A workdir of launch.pretrain or launch.finetune is measured on its own task. Other weights, a folder or a .pth or
.safetensors file, are measured on pairs: how well they complete views, and how well they find patches of one view in
the other. The data should be of scenes that the model has not seen.
"""

import json
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mimic_jax import command, files

WEIGHTS = flags.DEFINE_string("weights", None, "A workdir, a folder of weights, or a .pth or .safetensors file.")
flags.DEFINE_alias("workdir", "weights")
STEP = flags.DEFINE_string("step", None, "Which checkpoint of a workdir: a number, or best; the newest by default.")
DATA = flags.DEFINE_string("data", None, "A dataset of the task's kind of records, or several as a,b,c.")
EXAMPLES = flags.DEFINE_integer(
    "examples", None, "Examples at most, spread evenly; by default 512 pairs, or all images.", lower_bound=1
)
flags.DEFINE_alias("pairs", "examples")
BATCH = flags.DEFINE_integer("batch", 64, "Examples at a time; fewer need less memory.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "The size at which views are seen: SIDE or HEIGHTxWIDTH in pixels; as in training by default."
)
SEED = flags.DEFINE_integer("seed", 0, "Decides the masks and the second views of other scenes.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", None, "The numbers as a .json file; none by default.")
PICTURES = flags.DEFINE_string("pictures", None, "A folder for the pictures of a fine-tuned model's evaluations.")
flags.mark_flags_as_required(["weights", "data"])

# Examples in a picture, where the run drew none.
DRAWN = 4
COMPLETION = {
    "error": "error on hidden patches, with the right second view",
    "error_wrong_view": "… with a second view of another scene",
    "error_black_view": "… with a black second view",
    "ratio": "right / wrong; 1 where the second view is ignored",
    "psnr": "PSNR of completed pixels, dB",
}
MATCHERS = {
    "correspondence": "cross-attention, mean over layers",
    "features": "nearest neighbour in encoder features",
    "chance": "chance",
}


def main() -> None:
    output = Path(OUTPUT.value) if OUTPUT.value else None
    if output and output.suffix != ".json":
        raise command.InputError(f"--output={output} must end in .json")
    # Imported here, so that --help and mistakes in the flags are answered at once.
    from launch.workdirs import is_workdir
    from mimic_jax.workdir import read_config

    path = Path(WEIGHTS.value).expanduser()
    task = read_config(path)["task"] if is_workdir(path) else "completion"
    found = _measure_completion(path) if task == "completion" else _measure_task(path, task)
    if output:
        _write(output, {"weights": WEIGHTS.value, "data": DATA.value} | found)


def _measure_completion(path: Path) -> dict:
    from launch.views import seen_at
    from launch.workdirs import find_step, is_workdir
    from mimic_jax.data.mixture import all_examples, open_mixture
    from mimic_jax.evaluation.pairs import evaluate
    from mimic_jax.interop.load import load

    if PICTURES.value:
        raise command.InputError("--pictures is for fine-tuned models; python -m launch.reconstruct draws completions")
    examples = all_examples(open_mixture(DATA.value, "data"))
    if STEP.value and not is_workdir(path):
        raise command.InputError(f"--step={STEP.value}: {path} is not a workdir and has only one set of weights")
    weights = load(path, find_step(path, STEP.value) if is_workdir(path) else None)
    size, crop = seen_at(weights, IMAGE_SIZE.value)
    numbers, absent = evaluate(
        weights.model(),
        examples,
        size=size,
        crop=crop,
        limits=EXAMPLES.value or 512,
        batch=BATCH.value,
        seed=SEED.value,
    )
    console = Console()
    for table in _tables(numbers):
        console.print(table)
    for what, reason in absent.items():
        console.print(f"not measured: {what}: {reason}", highlight=False, soft_wrap=True, markup=False)
    step = {"step": weights.about["step"]} if "step" in weights.about else {}
    return {"size": size, "crop": crop, "seed": SEED.value} | step | {"numbers": numbers, "absent": absent}


def _measure_task(path: Path, task: str) -> dict:
    """Measures a fine-tuned model by its task's own evaluations."""
    from launch.workdirs import load_trained
    from mimic_jax.viz import pictures
    from mimic_jax.workdir import read_config

    if IMAGE_SIZE.value:
        raise command.InputError(f"--image_size: a model of the task {task!r} is measured at the size of its training")
    if SEED.value:
        raise command.InputError(f"--seed: nothing is random in an evaluation of the task {task!r}; leave the flag out")
    fields = read_config(path)["evals"].get(task, {})
    wanted = {
        "examples": EXAMPLES.value or 2**31 - 1,
        "pictures": (fields.get("pictures") or DRAWN) if PICTURES.value else 0,
    }
    changes = {f"evals.{task}.{name}": value for name, value in wanted.items() if name in fields}
    trained = load_trained(path, STEP.value, changes)
    if trained.task.evaluations is None:
        raise command.InputError(f"--workdir={path}: the task {task!r} sets no Task.evaluations (docs/add_a_task.md)")
    evaluations, numbers = trained.task.evaluations(DATA.value, BATCH.value)(trained.model, None), {}
    console = Console()
    for name, evaluation in evaluations.items():
        found = evaluation.run(trained.values)
        table = Table(name, "", title=f"step {trained.step}")
        for number, value in found.numbers.items():
            table.add_row(number.replace("_", " "), f"{value:.4g}")
        console.print(table)
        numbers |= found.numbers
        for picture, image in found.pictures.items():
            file = Path(PICTURES.value) / f"{picture}.png"
            pictures.save(image, file)
            console.print(f"picture: {file}", highlight=False, soft_wrap=True)
    return {"step": trained.step, "numbers": numbers}


def _tables(numbers: dict[str, float]) -> list[Table]:
    tables = []
    if "error" in numbers:
        table = Table("completion", "", title=f"{numbers['pairs']:.0f} pairs")
        single = "error_black_view" not in numbers  # a model of one view
        for name, meaning in (COMPLETION | ({"error": "error on hidden patches"} if single else {})).items():
            if name in numbers:
                table.add_row(meaning, f"{numbers[name]:.4g}")
        tables.append(table)
    if "features_within_1" in numbers:
        best = int(numbers.get("correspondence_best_layer", 0))
        layers = [name.removesuffix("_within_1") for name in numbers if name.startswith("layer_")]
        layers = {name: f"cross-attention, {name.replace('_', ' ')}" for name in layers if name.count("_") == 1}
        if best:
            layers[f"layer_{best}"] += ", the best"
        title = f"correspondences, {numbers['pairs']:.0f} pairs"
        table = Table("patches are found by", "within 1 patch", "within 2 patches", title=title)
        for name, meaning in ({"correspondence": MATCHERS["correspondence"]} | layers | MATCHERS).items():
            if f"{name}_within_1" in numbers:
                table.add_row(meaning, *(f"{numbers[f'{name}_within_{within}']:.1%}" for within in (1, 2)))
        tables.append(table)
    return tables


def _write(path: Path, value: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, (json.dumps(value, indent=2) + "\n").encode())
    except OSError as error:
        raise command.InputError(f"--output={path} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    command.run(main)
