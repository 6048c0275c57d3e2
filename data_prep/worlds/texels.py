"""Texture images as one flat store of mip levels, sampled for many rays at once."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer, UInt8, UInt32


@dataclasses.dataclass(frozen=True)
class Texels:
    """Every level of every texture, end to end. A texel is 32 bits (R, G, B, unused), so one gather fetches it whole.

    offset, height, width: per texture and level; textures with fewer levels repeat their last.
    """

    values: UInt32[np.ndarray, " texels"]
    offset: Int64[np.ndarray, "textures levels"]
    height: Int32[np.ndarray, "textures levels"]
    width: Int32[np.ndarray, "textures levels"]


def pack(images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Texels:
    """Builds the mip levels of RGB images, each level half the one before, down to one texel a side."""
    pyramids = [_pyramid(image) for image in images]
    levels = max(len(pyramid) for pyramid in pyramids)
    values, offset, height, width = [], [], [], []
    total = 0
    for pyramid in pyramids:
        offsets = []
        for level in pyramid:
            rgbx = np.dstack([level, np.zeros(level.shape[:2], np.uint8)])
            values.append(np.ascontiguousarray(rgbx).view(np.uint32).ravel())
            offsets.append(total)
            total += level.shape[0] * level.shape[1]
        repeats = levels - len(pyramid)
        offset.append(offsets + offsets[-1:] * repeats)
        height.append([level.shape[0] for level in pyramid] + [pyramid[-1].shape[0]] * repeats)
        width.append([level.shape[1] for level in pyramid] + [pyramid[-1].shape[1]] * repeats)
    return Texels(
        values=np.concatenate(values),
        offset=np.array(offset, np.int64),
        height=np.array(height, np.int32),
        width=np.array(width, np.int32),
    )


def sample(
    texels: Texels,
    texture: Integer[np.ndarray, " rays"],
    u: Float32[np.ndarray, " rays"],
    v: Float32[np.ndarray, " rays"],
    level: Float32[np.ndarray, " rays"],
) -> Float32[np.ndarray, "rays 3"]:
    """Trilinear RGB in 0–255. u, v: from the top left corner, 0–1 over the image, repeating; level: 0 is full size."""
    top = texels.offset.shape[1] - 1
    level = np.clip(level, 0, top)
    lower = level.astype(np.int64)
    fraction = (level - lower.astype(np.float32))[:, None]
    fine = _bilinear(texels, texture, u, v, lower)
    coarse = _bilinear(texels, texture, u, v, np.minimum(lower + 1, top))
    return fine + fraction * (coarse - fine)


def _pyramid(image: np.ndarray) -> list[np.ndarray]:
    levels = [np.ascontiguousarray(image)]
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        half = cv2.resize(levels[-1], (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
        levels.append(half)
    return levels


def _bilinear(texels: Texels, texture, u, v, level) -> np.ndarray:
    offset = texels.offset[texture, level]
    height = texels.height[texture, level]
    width = texels.width[texture, level]
    # A texel's value stands at its centre, hence the half.
    x = (u - np.floor(u)) * width.astype(np.float32) - np.float32(0.5)
    y = (v - np.floor(v)) * height.astype(np.float32) - np.float32(0.5)
    left, upper = np.floor(x), np.floor(y)
    across, down = (x - left)[:, None], (y - upper)[:, None]
    left, upper = left.astype(np.int32), upper.astype(np.int32)
    right, under = left + 1, upper + 1
    left += width * (left < 0)
    upper += height * (upper < 0)
    right -= width * (right >= width)
    under -= height * (under >= height)
    row0, row1 = offset + upper.astype(np.int64) * width, offset + under.astype(np.int64) * width
    above = _fetch(texels, row0 + left)
    above += across * (_fetch(texels, row0 + right) - above)
    below = _fetch(texels, row1 + left)
    below += across * (_fetch(texels, row1 + right) - below)
    below -= above
    below *= down
    above += below
    return above


def _fetch(texels: Texels, index) -> np.ndarray:
    return texels.values[index].view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)
