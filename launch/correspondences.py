"""Draws where each patch of view 1 looks in view 2, by the decoder's cross-attention and by encoder features.

python -m launch.correspondences --weights=PATH VIEW1 VIEW2 --output=FILE.png
python -m launch.correspondences --weights=PATH --data=DATASET --output=FILE.png

The weights are a workdir, a folder of weights, or a .pth or .safetensors file. View 1 is coloured by place; view 2 has
the colours of what looks there. Of a dataset, the mined correspondences are shown beside.
"""

from pathlib import Path

from absl import flags

from mimic_jax import command

WEIGHTS = flags.DEFINE_string("weights", None, "A workdir, a folder of weights, or a .pth or .safetensors file.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a workdir; the newest by default.")
DATA = flags.DEFINE_string("data", None, "A pair dataset, best of scenes held out from training; or name image files.")
OUTPUT = flags.DEFINE_string("output", None, "The picture, a .png file.")
ROWS = flags.DEFINE_integer("rows", 6, "How many pairs of a dataset.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "The size at which views are seen: SIDE or HEIGHTxWIDTH in pixels; as in training by default."
)
flags.mark_flags_as_required(["weights", "output"])


def main(*paths: str) -> None:
    output = Path(OUTPUT.value)
    if output.suffix != ".png":
        raise command.InputError(f"--output={output} must end in .png")
    if bool(DATA.value) == bool(paths):
        raise command.InputError("give either --data=DATASET or the image files VIEW1 VIEW2")
    if len(paths) == 1:
        raise command.InputError("VIEW2 missing: give VIEW1 VIEW2")
    # Imported here, so that --help and mistakes in the flags are answered at once.
    from launch.views import read_views, seen_at
    from mimic_jax.data.mixture import all_examples, open_mixture
    from mimic_jax.data.pairs import read_pairs
    from mimic_jax.data.source import spread
    from mimic_jax.interop.load import load
    from mimic_jax.viz import pictures
    from mimic_jax.viz.correspondences import draw_pairs, draw_two_views

    weights = load(WEIGHTS.value, STEP.value)
    _, size = seen_at(weights, IMAGE_SIZE.value)
    if paths:
        picture, drawn = draw_two_views(weights.model(), *read_views(paths, size)), f"{paths[0]} in {paths[1]}"
    else:
        examples = all_examples(open_mixture(DATA.value, "data"))
        pairs = read_pairs(examples, spread(examples, ROWS.value))
        picture, drawn = draw_pairs(weights.model(), pairs, size), f"{len(pairs)} pairs"
    pictures.save(picture, output)
    print(f"{output}: {drawn} as {WEIGHTS.value} finds it")


if __name__ == "__main__":
    command.run(main, positional=("VIEW1?", "VIEW2?"))
