"""Measures a model on pairs: how well it completes views, and how well it finds patches of one view in the other.

python -m launch.evaluate --weights=PATH --data=DATASET
python -m launch.evaluate --weights=PATH --data=DATASET --output=FILE.json

The weights are a workdir, a folder of weights, or a .pth or .safetensors file. The pairs should be of scenes that the
model has not seen.
"""

import json
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from mimic_jax import command, files

WEIGHTS = flags.DEFINE_string("weights", None, "A workdir, a folder of weights, or a .pth or .safetensors file.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a workdir; the newest by default.")
DATA = flags.DEFINE_string("data", None, "A pair dataset, or several as a,b,c.")
PAIRS = flags.DEFINE_integer("pairs", 512, "At most so many pairs, spread evenly over the data.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 64, "Pairs at a time; fewer need less memory.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "The size at which views are seen: SIDE or HEIGHTxWIDTH in pixels; as in training by default."
)
SEED = flags.DEFINE_integer("seed", 0, "Decides the masks and the wrong second views.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", None, "The numbers as a .json file; none where it is not named.")
flags.mark_flags_as_required(["weights", "data"])

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
    from launch.views import seen_at
    from mimic_jax.data.mixture import all_examples, open_mixture
    from mimic_jax.evaluation.evaluate import evaluate
    from mimic_jax.interop.load import load

    examples = all_examples(open_mixture(DATA.value, "data"))
    weights = load(WEIGHTS.value, STEP.value)
    size, crop = seen_at(weights, IMAGE_SIZE.value)
    numbers, absent = evaluate(
        weights, examples, size=size, crop=crop, pairs=PAIRS.value, batch=BATCH.value, seed=SEED.value
    )
    console = Console()
    for table in _tables(numbers):
        console.print(table)
    for what, why in absent.items():
        console.print(f"not measured: {what}: {why}", highlight=False, soft_wrap=True, markup=False)
    if output:
        told = {"weights": WEIGHTS.value, "data": DATA.value, "size": size, "crop": crop, "seed": SEED.value}
        told |= {"step": weights.about["step"]} if "step" in weights.about else {}
        _write(output, told | {"numbers": numbers, "absent": absent})


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
