"""Draws what a trained model makes of hidden patches: masked view 1, view 2, completed view 1, view 1.

python -m launch.reconstruct --weights=PATH --data=DATASET --output=FILE.png
python -m launch.reconstruct --weights=PATH VIEW1 VIEW2 --output=FILE.png

The weights are a workdir, a folder of weights, or a .pth or .safetensors file. An MAE takes VIEW1 alone.
"""

from pathlib import Path

from absl import flags

from mimic_jax import command

WEIGHTS = flags.DEFINE_string("weights", None, "A workdir, a folder of weights, or a .pth or .safetensors file.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a workdir; the newest by default.")
DATA = flags.DEFINE_string("data", None, "A pair dataset, best of scenes held out from training; or name image files.")
OUTPUT = flags.DEFINE_string("output", None, "The picture, a .png file.")
ROWS = flags.DEFINE_integer("rows", 8, "How many pairs of a dataset.", lower_bound=1)
MASK_RATIO = flags.DEFINE_float("mask_ratio", None, "The share of view 1 that is hidden; as in training by default.")
IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "The size at which views are seen: SIDE or HEIGHTxWIDTH in pixels; as in training by default."
)
SEED = flags.DEFINE_integer("seed", 0, "Decides the masks.", lower_bound=0)
flags.mark_flags_as_required(["weights", "output"])


def main(*paths: str) -> None:
    output = Path(OUTPUT.value)
    if output.suffix != ".png":
        raise command.InputError(f"--output={output} must end in .png")
    if bool(DATA.value) == bool(paths):
        raise command.InputError("give either --data=DATASET or the image files VIEW1 VIEW2")
    if MASK_RATIO.value is not None and not 0 < MASK_RATIO.value < 1:
        raise command.InputError(f"--mask_ratio={MASK_RATIO.value} must be between 0 and 1")
    # Imported here, so that --help and mistakes in the flags are answered at once.
    import numpy as np

    from launch.views import read_views, seen_at
    from mimic_jax.data.mixture import all_examples, open_mixture
    from mimic_jax.evaluation.completion import predicts_pixels
    from mimic_jax.interop.load import load
    from mimic_jax.viz import pictures
    from mimic_jax.viz.reconstruction import make_drawer, make_drawer_of_views

    weights = load(WEIGHTS.value, STEP.value)
    model = weights.model()
    if not predicts_pixels(model):
        raise command.InputError(
            f"{WEIGHTS.value}: has no prediction head, so it completes no views; give other weights"
        )
    size, crop = seen_at(weights, IMAGE_SIZE.value)
    options = {"mask_ratio": MASK_RATIO.value, "seed": SEED.value}
    if paths:
        if len(paths) < model.views:
            raise command.InputError("VIEW2 missing: these weights complete view 1 from a second view")
        if len(paths) > model.views:
            raise command.InputError(f"{paths[1]}: these weights complete a view by itself; give VIEW1 alone")
        views = [np.stack([view]) for view in read_views(paths[: model.views], crop)]
        draw, drawn = make_drawer_of_views(model, views, **options), paths[0]
    else:
        examples = all_examples(open_mixture(DATA.value, "data"))
        rows = min(ROWS.value, len(examples))
        draw, drawn = make_drawer(model, examples, size=size, crop=crop, rows=rows, **options), f"{rows} pairs"
    pictures.save(draw(weights.params), output)
    print(f"{output}: {drawn} completed by {WEIGHTS.value}")


if __name__ == "__main__":
    command.run(main, positional=("VIEW1?", "VIEW2?"))
