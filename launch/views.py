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

    Both are `image_size` where it is given; else the image sizes of the weights' training, where they record them; else
    the image size of the weights' position tables; else 224 pixels, or the multiple of the patch below.

    Raises:
      InputError: the image size is not SIDE or HEIGHTxWIDTH, or not a multiple of the patch size.
    """
    patch = weights.sizes.patch_size
    if image_size is not None:
        size = parse_image_size(image_size)
        if any(side % patch for side in size):
            near = "x".join(str(max(1, round(side / patch)) * patch) for side in size)
            raise InputError(
                f"--image_size={image_size}: must be a multiple of {patch}, these weights' patch size; {near}, say"
            )
        return size, size
    if weights.seen is not None:
        return weights.seen.size, weights.seen.crop
    rows, columns = weights.sizes.position_grid or (_USUAL // patch, _USUAL // patch)
    size = rows * patch, columns * patch
    if weights.sizes.position_grid is None:
        print(f"the weights do not record their training image size: using {size[0]}x{size[1]}, see --image_size")
    return size, size


def parse_image_size(text: str) -> Size:
    """(height, width) in pixels of what --image_size says.

    Raises:
      InputError: it is neither SIDE nor HEIGHTxWIDTH.
    """
    numbers = text.lower().replace("×", "x").split("x")
    if len(numbers) > 2 or not all(each.isascii() and each.isdigit() and int(each) for each in numbers):
        raise InputError(f"--image_size={text}: give SIDE or HEIGHTxWIDTH, in pixels")
    return int(numbers[0]), int(numbers[-1])


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
