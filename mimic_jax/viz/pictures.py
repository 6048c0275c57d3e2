"""Pictures of what went in and what came out: RGB uint8 arrays, and how to write them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, Int16, UInt8

from mimic_jax import records
from mimic_jax.command import InputError

Picture = UInt8[np.ndarray, "_ _ 3"]

_GAP = 4
_LINE = 22  # the height of a line of text


def save(picture: Picture, path: Path) -> None:
    """Writes a picture as PNG.

    Raises:
      InputError: the path cannot be written.
    """
    encoded, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert encoded
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def grid(rows: Sequence[Sequence[Picture]], headings: Sequence[str] = ()) -> Picture:
    """Pictures of one size in rows and columns on white, a heading above each column."""
    height, width, _ = rows[0][0].shape
    top = 20 if headings else 0
    canvas = np.full((top + len(rows) * (height + _GAP) - _GAP, len(rows[0]) * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for column, heading in enumerate(headings):
        cv2.putText(
            canvas, heading, (column * (width + _GAP), 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA
        )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = top + i * (height + _GAP), j * (width + _GAP)
            canvas[y : y + height, x : x + width] = picture
    return canvas


def enlarge(picture: Picture, factor: int) -> Picture:
    """Each pixel as a square of `factor` pixels a side."""
    return picture.repeat(factor, 0).repeat(factor, 1)


def draw_pair(pair: records.Pair, lines: int = 24) -> Picture:
    """The two views side by side, with lines between the centres of matched patches.

    Args:
      lines: about how many of the matched patches get one, spread evenly.
    """
    view1, view2 = records.decode_image(pair.view1), records.decode_image(pair.view2)
    (height1, width1), (height2, width2) = view1.shape[:2], view2.shape[:2]
    canvas = np.full((max(height1, height2), width1 + _GAP + width2, 3), 255, np.uint8)
    canvas[:height1, :width1] = view1
    canvas[:height2, width1 + _GAP :] = view2
    # Correspondences count patches of a square grid.
    side = round(len(pair.correspondence) ** 0.5)
    matched = np.flatnonzero(pair.correspondence >= 0)
    for patch in matched[:: max(1, len(matched) // lines)]:
        color = cv2.applyColorMap(np.uint8([[255 * patch / len(pair.correspondence)]]), cv2.COLORMAP_HSV)[0, 0].tolist()
        (y1, x1), (y2, x2) = (
            ((index // side + 0.5) / side * height, (index % side + 0.5) / side * width)
            for index, height, width in [(patch, height1, width1), (pair.correspondence[patch], height2, width2)]
        )
        start, end = (round(x1), round(y1)), (round(x2 + width1 + _GAP), round(y2))
        cv2.line(canvas, start, end, color, 1, cv2.LINE_AA)
        cv2.circle(canvas, start, 3, color, -1, cv2.LINE_AA)
        cv2.circle(canvas, end, 3, color, -1, cv2.LINE_AA)
    return canvas


def fit(image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> Picture:
    """An image of any shape scaled to cover `size` (height, width), and the middle of it cut out."""
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    # Rounded up to the size at least: half a pixel must not be missing.
    covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    image = records.resize(image, covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return image[top : top + height, left : left + width]


def label(picture: Picture, text: str) -> Picture:
    """A picture with a line of text above it, on white."""
    band = np.full((_LINE, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, text, (0, _LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([band, picture])


def tint_matches(
    view1: Picture, view2: Picture, correspondence: Int16[np.ndarray, " patches"]
) -> tuple[Picture, Picture]:
    """Both views with each matched patch in a colour of its own, the same in both, and all else darkened.

    Args:
      view1, view2: of any size; they are cut into as many patches a side as the square grid has.
      correspondence: for each patch of view1 in row-major order, the patch of view2, −1 where none.
    """
    side = round(len(correspondence) ** 0.5)
    matched = np.flatnonzero(correspondence >= 0)
    colours = place_colours((side, side))[matched]
    return tint(view1, matched, colours, (side, side)), tint(view2, correspondence[matched], colours, (side, side))


def place_colours(grid: tuple[int, int]) -> Float[np.ndarray, "patches 3"]:
    """A colour for each patch of a grid of (rows, columns), row-major, in [0, 255].

    Neighbours look alike, so that a patch out of its place stands out: red grows to the right, green downwards.
    """
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    red, green = 255 * (column + 0.5) / grid[1], 255 * (row + 0.5) / grid[0]
    return np.stack([red, green, 255 - (red + green) / 2], axis=-1)


def tint(
    view: Picture,
    patches: Int[np.ndarray, " tinted"],
    colours: Float[np.ndarray, "tinted 3"],
    grid: tuple[int, int],
) -> Picture:
    """A view with some patches of a grid of (rows, columns) in colours, and all else darkened."""
    height, width, _ = view.shape
    rows, columns = grid
    tinted = view * np.float32(0.3)
    for patch, colour in zip(patches.tolist(), colours, strict=True):
        (y, next_y), (x, next_x) = (
            (place * length // count, (place + 1) * length // count)
            for place, length, count in [(patch // columns, height, rows), (patch % columns, width, columns)]
        )
        tinted[y:next_y, x:next_x] = 0.55 * view[y:next_y, x:next_x] + 0.45 * colour
    return tinted.round().astype(np.uint8)


def to_uint8(image: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Colours in [0, 1], and what lies outside clipped, to bytes."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
