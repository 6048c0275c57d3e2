"""Draws what a trained model makes of hidden patches: masked view 1, view 2, completed view 1, view 1.

python -m launch.reconstruct --workdir=DIR --data=DATASET --output=FILE.png
"""

from pathlib import Path

from absl import flags

from mimic_jax import command

WORKDIR = flags.DEFINE_string("workdir", None, "The folder that pretrain wrote.")
DATA = flags.DEFINE_string("data", None, "A pair dataset, best of scenes held out from training.")
OUTPUT = flags.DEFINE_string("output", None, "The picture, a .png file.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
ROWS = flags.DEFINE_integer("rows", 8, "How many pairs.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Decides the masks.")
flags.mark_flags_as_required(["workdir", "data", "output"])


def main() -> None:
    # Imported here, so that --help and a misspelt flag answer at once.
    from mimic_jax import records
    from mimic_jax.training.checkpoint import load_model
    from mimic_jax.viz import pictures
    from mimic_jax.viz.reconstruction import draw_reconstructions

    output = Path(OUTPUT.value)
    if output.suffix != ".png":
        raise command.InputError(f"--output={output} must end in .png")
    dataset = records.open_dataset(DATA.value)
    model, config, step = load_model(Path(WORKDIR.value), STEP.value)
    rows = min(ROWS.value, len(dataset))
    size, crop = config["data"]["size"], config["data"]["crop"]
    pictures.save(draw_reconstructions(model, dataset, size=size, crop=crop, rows=rows, seed=SEED.value), output)
    print(f"{output}: {rows} pairs completed by the model of step {step}")


if __name__ == "__main__":
    command.run(main)
