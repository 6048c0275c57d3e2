"""Predicts depth or normals of your own images with a fine-tuned model.

    python -m launch.predict --workdir=DIR --output=FOLDER IMAGE…

Depth is written as NAME_depth.png, 16 bits, in millimetres (65535 means at least 65.535 m), and NAME_depth_colour.png;
normals as NAME_normals.png, 8-bit RGB, round((n + 1) / 2 · 255) of the unit normal in camera axes (x right, y down,
z forward). Results have the size of the image. An image is resized for the model so that its shorter side is that of
the training crop.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.progress import track

from mimic_jax import command

WORKDIR = flags.DEFINE_string("workdir", None, "A workdir of launch.finetune.")
STEP = flags.DEFINE_string("step", None, "Which checkpoint: a number, or best; the newest by default.")
OUTPUT = flags.DEFINE_string("output", None, "The folder of the results.")
SIDE = flags.DEFINE_integer(
    "side", None, "Shorter side in pixels at which the model sees images; that of training by default.", lower_bound=16
)
flags.mark_flags_as_required(["workdir", "output"])

MILLIMETRE = 1e-3


def main(*paths: str) -> None:
    # Imported here, so that --help and mistakes in the flags are answered at once.
    import jax
    import numpy as np

    from data_prep.sources.images import ImageProblem, read_image
    from launch.workdirs import load_trained
    from mimic_jax import files
    from mimic_jax.data.augment import normalize
    from mimic_jax.records import resize

    trained = load_trained(Path(WORKDIR.value).expanduser(), STEP.value)
    if trained.task.predict is None:
        raise command.InputError(
            f"--workdir={WORKDIR.value}: the task {trained.task.name} predicts no labels; give a workdir of "
            "launch.finetune"
        )
    model, seen = trained.merged(), trained.task.backbone.seen
    predict = jax.jit(lambda images: trained.task.predict(model, normalize(images.astype(np.float32) / 255)))
    output = Path(OUTPUT.value).expanduser()
    names = _names(paths)
    for path, name in track(list(zip(paths, names, strict=True)), "predicting", disable=len(paths) == 1):
        try:
            image = read_image(files.as_path(path))
        except ImageProblem as problem:
            raise command.InputError(f"{path}: {problem}; an image file is needed (JPEG, PNG, …)") from problem
        size = _size(image.shape[:2], SIDE.value or min(seen.crop), 2 * trained.task.backbone.sizes.patch_size)
        labels = predict(resize(image, size)[None])
        for label, values in labels.items():
            for file in _write(label, np.asarray(values[0]), image.shape[:2], output, name):
                print(file)


def _names(paths: Sequence[str]) -> list[str]:
    """Names of results; images of one name in different folders are refused."""
    names = [Path(path).stem for path in paths]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            raise command.InputError(f"{path}: another image has the name {name!r} too; predict them separately")
    return names


def _size(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """Height and width near the image's shape whose shorter side is near `side`, both multiples of `multiple`."""
    scale = side / min(size)
    height, width = (max(1, round(length * scale / multiple)) * multiple for length in size)
    return height, width


def _write(label: str, values, size: tuple[int, int], output: Path, name: str) -> list[Path]:
    import cv2
    import numpy as np

    from mimic_jax import files, records
    from mimic_jax.viz import pictures
    from mimic_jax.viz.dense import depth_range, draw_depth

    values = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = output / f"{name}_{label}.png"
        if label == "depth":
            most = MILLIMETRE * np.iinfo(np.uint16).max
            png, _ = records.dense.encode_depth(np.clip(values, MILLIMETRE, most), MILLIMETRE)
            coloured = output / f"{name}_depth_colour.png"
            pictures.save(draw_depth(np.maximum(values, MILLIMETRE), depth_range(values)), coloured)
            files.write(file, png)
            return [file, coloured]
        files.write(file, records.dense.encode_normals(values))
        return [file]
    except OSError as error:
        raise command.InputError(f"--output={output} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    command.run(main, positional=("IMAGE…",))
