"""What the commands that look into a model share: how large views are, and views from image files."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from data_prep.sources.images import ImageProblem, read_image
from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.interop.weights import Weights
from mimic_jax.viz.pictures import fit

Size = tuple[int, int]

# What published models saw, where the weights do not say.
_USUAL = 224


def seen_at(weights: Weights, image_size: str | None) -> tuple[Size, Size]:
    """The (height, width) that views are resized to, and that of the middle of them which the model sees.

    Both are `image_size` where it is given; else those of the run that trained the weights; else the image size that
    the weights' position tables are for; else 224 pixels, or the multiple of the patch below.

    Raises:
      InputError: the image size is not SIDE or HEIGHTxWIDTH, or not a multiple of the patch size.
    """
    patch = weights.sizes.patch_size
    if image_size is not None:
        numbers = image_size.lower().replace("×", "x").split("x")
        if len(numbers) > 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise InputError(f"--image_size={image_size}: give SIDE or HEIGHTxWIDTH, in pixels")
        size = int(numbers[0]), int(numbers[-1])
        if any(side < 1 or side % patch for side in size):
            raise InputError(
                f"--image_size={image_size}: must be a multiple of {patch}, the patch size of these weights"
            )
        return size, size
    if "config" in weights.about:
        data = weights.about["config"]["data"]
        size, crop = ((each, each) if isinstance(each, int) else tuple(each) for each in (data["size"], data["crop"]))
        return size, crop
    rows, columns = weights.sizes.position_grid or (_USUAL // patch, _USUAL // patch)
    return (rows * patch, columns * patch), (rows * patch, columns * patch)


def read_views(paths: Sequence[str], size: Size) -> list[UInt8[np.ndarray, "{size[0]} {size[1]} 3"]]:
    """Image files, each scaled to cover the size (height, width), and the middle of it.

    Raises:
      InputError: names the file that is no image.
    """
    views = []
    for path in paths:
        try:
            views.append(fit(read_image(files.as_path(path)), size))
        except ImageProblem as problem:
            raise InputError(f"{path}: {problem}; an image file is needed (JPEG, PNG, …)") from problem
    return views
