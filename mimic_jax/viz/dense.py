"""Pictures of dense predictions: depth, normals, their errors, and rows of input, prediction, truth, error."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mimic_jax.viz.pictures import Picture, enlarge, grid, to_uint8

Depth = Float[np.ndarray, "height width"]
Normals = Float[np.ndarray, "height width 3"]

HEADINGS = ("input", "prediction", "truth", "error")
# Pictures narrower than this are enlarged, so that headings fit.
_CELL = 96
# Share of depths below the darkest and above the brightest colour.
_TAILS = (2, 98)
# Errors as large or larger are white: relative errors of depth, degrees of normals.
MOST_RELATIVE, MOST_DEGREES = 0.5, 60.0


def depth_range(truth: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """The depths between which colours vary: percentiles 2 and 98 of the known ones; (0, 1) where none is known."""
    known = truth[truth > 0]
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, _TAILS)
    return float(low), float(max(high, low + 1e-6))


def draw_depth(depth: Depth, shown: tuple[float, float]) -> Picture:
    """Depth in colours, near in red and far in blue; unknown depth (0 or less) is black.

    Args:
      depth: metres.
      shown: lowest and highest depth, such as `depth_range` of the truth for prediction and truth alike.
    """
    low, high = shown
    nearness = 1 - np.clip((depth - low) / (high - low), 0, 1)
    coloured = cv2.applyColorMap(to_uint8(nearness.astype(np.float32)), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where((depth > 0)[..., None], coloured, 0).astype(np.uint8)


def draw_normals(normals: Normals) -> Picture:
    """Normals of any length as RGB, (n + 1)/2 of the unit vector; unknown normals (length 0) are black."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    colours = to_uint8((normals / np.maximum(length, 1e-12) + 1) / 2)
    return np.where(length > 0, colours, 0).astype(np.uint8)


def draw_error(error: Depth, valid: Bool[np.ndarray, "height width"], largest: float) -> Picture:
    """Errors from black (0) over red to white (`largest` and more); grey where the truth is not known."""
    heat = cv2.applyColorMap(to_uint8((error / largest).astype(np.float32)), cv2.COLORMAP_HOT)[..., ::-1]
    return np.where(valid[..., None], heat, 128).astype(np.uint8)


def draw_depths(
    images: UInt8[np.ndarray, "rows height width 3"],
    predictions: Float[np.ndarray, "rows height width"],
    truths: Float[np.ndarray, "rows height width"],
) -> Picture:
    """A row of input, prediction, truth and relative error for each image.

    Args:
      images: RGB.
      predictions, truths: metres; truth 0 where unknown. A row's prediction has the colours of its truth; errors of
        half the truth and more are white.
    """
    rows = []
    for image, prediction, truth in zip(images, predictions, truths, strict=True):
        shown, valid = depth_range(truth), truth > 0
        error = np.abs(prediction - truth) / np.where(valid, truth, 1)
        # A predicted depth of 0 or less is drawn as the nearest depth, not as unknown.
        drawn = draw_depth(np.maximum(prediction, 1e-6), shown)
        rows.append([image, drawn, draw_depth(truth, shown), draw_error(error, valid, MOST_RELATIVE)])
    return _grid(rows)


def draw_normal_maps(
    images: UInt8[np.ndarray, "rows height width 3"],
    predictions: Float[np.ndarray, "rows height width 3"],
    truths: Float[np.ndarray, "rows height width 3"],
) -> Picture:
    """A row of input, prediction, truth and angular error for each image.

    Args:
      images: RGB.
      predictions: normals of any length. truths: unit normals, 0 where unknown. Errors of 60 degrees and more are
        white.
    """
    rows = []
    for image, prediction, truth in zip(images, predictions, truths, strict=True):
        length = np.linalg.norm(prediction, axis=-1)
        cosine = (prediction * truth).sum(-1) / np.maximum(length, 1e-12)
        error = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        known = np.linalg.norm(truth, axis=-1) > 0
        rows.append([image, draw_normals(prediction), draw_normals(truth), draw_error(error, known, MOST_DEGREES)])
    return _grid(rows)


def _grid(rows: Sequence[Sequence[Picture]]) -> Picture:
    factor = -(-_CELL // rows[0][0].shape[1])
    return grid([[enlarge(each, factor) for each in row] for row in rows], HEADINGS)
