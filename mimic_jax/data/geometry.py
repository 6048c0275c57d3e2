"""Augmentation of labelled images on the accelerator: image and labels of a row move together.

A batch is a dict: `image` uint8 [batch, height, width, 3], and any of the labels
`depth` float32 [batch, height, width], metres, 0 unknown;
`normals` float32 [batch, height, width, 3], unit vectors, 0 unknown;
`classes` int32 [batch, height, width].
Arrays of one dimension, such as weights of rows, pass unchanged. Labels are never blended: each result is one label of
the source. Resizing changes no depth: metres along the optical axis stay metres, whatever the focal length in pixels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from mimic_jax.data.augment import Bytes, color_jitter, normalize, random_windows, resize_windows

LABELS = ("depth", "normals", "classes")

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a model sees of a labelled image in training.

    crop: height and width of the result in pixels.
    area: the window's share of the image's area, lowest and highest; it is resized to `crop`, with width / height from
      3/4 to 4/3 of the window. None: a window of exactly `crop` pixels.
    flip: the probability that left and right are swapped; it mirrors the x of normals.
    jitter: brightness, contrast and saturation of the image change by factors within 1 ± jitter.

    Raises:
      ValueError: a field is out of its range.
    """

    crop: tuple[int, int]
    area: tuple[float, float] | None = None
    flip: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop={self.crop} must be at least 1×1 pixels")
        for field in ("flip", "jitter"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)} must be from 0 to 1")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area={self.area} must be two shares above 0 and up to 1, the lower first")


def augment(key: PRNGKeyArray, batch: Batch, geometry: Geometry) -> Batch:
    """Windows, flips and jitters the rows of a batch, each on its own.

    Args:
      key: decides everything, for the whole batch.
      batch: `image` and labels, as above.

    Returns:
      The same entries: `image` normalised float32 [batch, *crop, 3], labels of [batch, *crop] in their own types.

    Raises:
      ValueError: the image is smaller than `crop` without `area`, or an entry is no known label.
    """
    key_window, key_flip, key_jitter = jax.random.split(key, 3)
    image, labels, others = _parts(batch)
    count, size = len(image), image.shape[1:3]
    if geometry.area is None:
        free = _free(size, geometry.crop)
        corners = jax.random.randint(key_window, (count, 2), 0, jnp.array(free) + 1)
        image = _cut(image, corners, geometry.crop).astype(jnp.float32) / 255
        labels = {name: _cut(label, corners, geometry.crop) for name, label in labels.items()}
    else:
        windows = random_windows(key_window, count, size, geometry.area)
        image = resize_windows(image.astype(jnp.float32) / 255, windows, geometry.crop)
        labels = {name: nearest_windows(label, windows, geometry.crop) for name, label in labels.items()}
    flipped = jax.random.bernoulli(key_flip, geometry.flip, (count,))
    image = _flip(image, flipped)
    labels = {name: _flip(label, flipped) for name, label in labels.items()}
    if "normals" in labels:
        mirrored = labels["normals"] * jnp.array([-1.0, 1.0, 1.0])
        labels["normals"] = jnp.where(flipped[:, None, None, None], mirrored, labels["normals"])
    if geometry.jitter:
        image = color_jitter(key_jitter, image, geometry.jitter)
    return others | labels | {"image": normalize(image)}


def center_crop(batch: Batch, crop: tuple[int, int]) -> Batch:
    """The middle window of every row, the image normalised: what evaluation sees.

    Args:
      crop: height and width in pixels; odd remainders are cut off below and to the right.

    Raises:
      ValueError: the image is smaller than `crop`, or an entry is no known label.
    """
    image, labels, others = _parts(batch)
    top, left = (free // 2 for free in _free(image.shape[1:3], crop))
    cut = lambda array: array[:, top : top + crop[0], left : left + crop[1]]  # noqa: E731
    return others | jax.tree.map(cut, labels) | {"image": normalize(cut(image).astype(jnp.float32) / 255)}


def resize_shorter(batch: Batch, side: int) -> Batch:
    """Every row resized so that the shorter side is `side` pixels, as MultiMAE's program does before it crops.

    The image is half-pixel bilinear without antialiasing, rounded to bytes; labels are nearest with source index
    ⌊i · in / out⌋, which is up to half a source pixel up and left of the image.

    Raises:
      ValueError: an entry is no known label.
    """
    image, labels, others = _parts(batch)
    height, width = image.shape[1:3]
    scale = side / min(height, width)
    size = round(height * scale), round(width * scale)  # half to even
    resized = jax.image.resize(image.astype(jnp.float32), (len(image), *size, 3), "linear", antialias=False)
    rows, columns = (np.arange(out) * length // out for out, length in zip(size, (height, width), strict=True))
    labels = {name: label[:, rows][:, :, columns] for name, label in labels.items()}
    return others | labels | {"image": jnp.round(resized).clip(0, 255).astype(jnp.uint8)}


def nearest_windows(
    labels: Shaped[Array, "batch height width *channels"], windows: Int[Array, "batch 4"], size: tuple[int, int]
) -> Shaped[Array, "batch {size[0]} {size[1]} *channels"]:
    """Each row's window (top, left, height, width) resized to `size`: the label whose pixel holds the result's centre.

    Source indices are ⌊(i + ½) · in / out⌋, in integers, so that labels stay where `augment.resize_windows` moves the
    image.
    """

    def resize(label: Shaped[Array, "height width *channels"], window: Int[Array, "4"]):
        rows, columns = (
            window[axis] + (2 * jnp.arange(size[axis]) + 1) * window[2 + axis] // (2 * size[axis]) for axis in (0, 1)
        )
        return label[rows][:, columns]

    return jax.vmap(resize)(labels, windows)


def whole_cells(valid: Bool[Array, "batch height width"], cell: int = 4) -> Bool[Array, "batch height width"]:
    """Drops every cell of `cell`×`cell` pixels that has an invalid one (MultiMAE's program on Taskonomy).

    Where `cell` does not divide the size, the rows and columns beyond the last whole cell are not looked at, and the
    cells are stretched over the image, as published.
    """
    _, height, width = valid.shape
    rows, columns = height // cell, width // cell
    cells = valid[:, : rows * cell, : columns * cell].reshape(-1, rows, cell, columns, cell).all((2, 4))
    return cells[:, np.arange(height) * rows // height][:, :, np.arange(width) * columns // width]


def _parts(batch: Batch) -> tuple[Bytes, Batch, Batch]:
    """The image, the labels, and what passes unchanged."""
    labels = {name: array for name, array in batch.items() if name in LABELS}
    others = {name: array for name, array in batch.items() if name not in (*LABELS, "image")}
    for name, array in others.items():
        if array.ndim > 1:
            raise ValueError(f"batch entry {name!r} must be one of image, {', '.join(LABELS)}, or one number a row")
    return batch["image"], labels, others


def _free(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image that a window of `crop` leaves out."""
    if size[0] < crop[0] or size[1] < crop[1]:
        raise ValueError(f"crop={crop[0]}×{crop[1]} is larger than the images of {size[0]}×{size[1]} pixels")
    return size[0] - crop[0], size[1] - crop[1]


def _cut(
    arrays: Shaped[Array, "batch height width *channels"], corners: Int[Array, "batch 2"], crop: tuple[int, int]
) -> Shaped[Array, "batch {crop[0]} {crop[1]} *channels"]:
    def cut(array, corner):
        beyond = array.ndim - 2
        return jax.lax.dynamic_slice(array, (*corner, *(0,) * beyond), (*crop, *array.shape[2:]))

    return jax.vmap(cut)(arrays, corners)


def _flip(
    arrays: Shaped[Array, "batch height width *channels"], flipped: Bool[Array, " batch"]
) -> Shaped[Array, "batch height width *channels"]:
    rows = flipped.reshape(-1, *(1,) * (arrays.ndim - 1))
    return jnp.where(rows, arrays[:, :, ::-1], arrays)
