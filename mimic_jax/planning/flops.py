"""FLOPs of a training step beside the model's."""

from mimic_jax.data.augment import Augmentation


def augmentation_flops(augmentation: Augmentation, size: tuple[int, int], images: int) -> int:
    """FLOPs of resizing random windows, which is two matrix products an image; other augmentations have none.

    Args:
      size: height and width of images as they are read, in pixels.
    """
    if augmentation.area is None:
        return 0
    (height, width), (rows, columns) = size, augmentation.crop
    first_rows = 3 * rows * width * (height + columns)
    first_columns = 3 * height * columns * (width + rows)
    return 2 * images * min(first_rows, first_columns)
