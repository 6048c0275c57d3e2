"""Images to patches and back. A patch flattens as (row, column, channel); patches run row-major."""

import numpy as np
from jaxtyping import Array, Shaped


def grid_of(images: Shaped[Array | np.ndarray, "batch height width channels"], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of `patch` pixels.

    Raises:
      ValueError: the height or width is not a multiple of `patch`.
    """
    _, height, width, _ = images.shape
    if height % patch or width % patch:
        raise ValueError(f"images of {height}×{width} pixels do not divide into patches of {patch}")
    return height // patch, width // patch


def patchify(
    images: Shaped[Array | np.ndarray, "batch height width channels"], patch: int
) -> Shaped[Array | np.ndarray, "batch patches patch_pixels"]:
    """Cuts images into square patches of `patch` pixels.

    Raises:
      ValueError: the height or width is not a multiple of `patch`.
    """
    rows, columns = grid_of(images, patch)
    batch, _, _, channels = images.shape
    cut = images.reshape(batch, rows, patch, columns, patch, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(
    patches: Shaped[Array | np.ndarray, "batch patches patch_pixels"], patch: int, rows: int, columns: int
) -> Shaped[Array | np.ndarray, "batch height width channels"]:
    """The inverse of `patchify` for a grid of rows × columns."""
    cut = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), rows * patch, columns * patch, -1)
