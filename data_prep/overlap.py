"""Homography → patch correspondences and overlap: steps 5 to 8 of the pair test of MIMIC (arXiv 2306.15128).

Images are square with `image_size` pixels a side, cut into patches of `patch_size` pixels, numbered in row-major order
from 0 at the top left. Pixel (x, y) of a view, x to the right and y down, counted from 0, lies in the patch at row
⌊y / patch_size⌋ and column ⌊x / patch_size⌋. A homography maps view1 pixels to view2 pixels and is scaled so that its
third coordinate is positive for points in front of the camera; points at or behind the horizon land outside.
"""

import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int16, Int64

# Pixels of each patch that vote for its destination, drawn with replacement, as MIMIC does.
VOTES = 100
NO_PATCH = -1


def correspondences(
    homography: Float[np.ndarray, "3 3"], image_size: int = 224, patch_size: int = 16, votes: int | None = VOTES
) -> Int16[np.ndarray, " patches"]:
    """For each patch of view1 the patch of view2 it maps to, −1 where none; no patch of view2 is given twice.

    Both directions are mapped, view2 → view1 through the inverse, and the map with fewer matches is kept (view1 → view2
    when they are equal). A homography that is singular or not finite matches nothing.

    Args:
      homography: view1 pixels → view2 pixels.
      image_size: pixels along a side of each view; a multiple of `patch_size`.
      patch_size: pixels along a side of a patch.
      votes: pixels drawn from each patch, the same ones every time; None takes every pixel once. The draw is part of
        the measure: where a patch straddles two, neighbours that draw differently claim one destination and one of them
        loses it. Taking every pixel gives 2 points more overlap on average, up to 13 for shifts of half a patch.

    Source: arXiv 2306.15128; with the default `votes` the overlap is that of the published rules to within their own
    noise (tests/data_prep/test_matching.py).
    """
    try:
        inverse = np.linalg.inv(homography.astype(np.float64))
    except np.linalg.LinAlgError:
        inverse = np.full((3, 3), np.nan)
    return both_ways(
        destinations(homography, image_size, patch_size, votes), destinations(inverse, image_size, patch_size, votes)
    )


def both_ways(
    forward: Int64[np.ndarray, " patches"], backward: Int64[np.ndarray, " patches"]
) -> Int16[np.ndarray, " patches"]:
    """Makes destinations view1 → view2 and view2 → view1 one-to-one, and keeps the map with fewer matches (view1 →
    view2 when they are equal), as a map view1 → view2."""
    forward, backward = one_to_one(forward), one_to_one(backward)
    if np.count_nonzero(backward >= 0) >= np.count_nonzero(forward >= 0):
        return forward.astype(np.int16)
    matched = np.flatnonzero(backward >= 0)
    result = np.full(len(backward), NO_PATCH, np.int16)
    result[backward[matched]] = matched
    return result


def destinations(
    homography: Float[np.ndarray, "3 3"], image_size: int = 224, patch_size: int = 16, votes: int | None = VOTES
) -> Int64[np.ndarray, " patches"]:
    """For each patch the patch where most of its pixels land, −1 where most land outside; not yet one-to-one.

    A tie between patches goes to the lower number, a tie between a patch and the outside to the patch.
    """
    grid = image_size // patch_size
    pixels, ballots = _pixels(image_size, patch_size, votes)
    if not np.isfinite(homography).all():
        return np.full(grid * grid, NO_PATCH)
    homography = homography.astype(np.float64)
    landed = cv2.perspectiveTransform(pixels, homography)[0]
    # Patch coordinates with a border one patch wide that stands for everything outside.
    landed /= patch_size
    np.floor(landed, out=landed)
    np.clip(landed, -1, grid, out=landed)
    # The third coordinate is linear in the pixel, so its least value over the image is at a corner.
    corners = np.array([[x, y, 1] for x in (0, image_size - 1) for y in (0, image_size - 1)])
    if (corners @ homography[2]).min() <= 0:
        depth = pixels[0] @ homography[2, :2] + homography[2, 2]
        landed[depth <= 0] = -1
    return _elect(ballots, landed, grid)


def destinations_of(
    position: Float64[np.ndarray, "image_size image_size 2"],
    seen: Bool[np.ndarray, "image_size image_size"],
    patch_size: int = 16,
) -> Int64[np.ndarray, " patches"]:
    """`destinations` where it is known for every pixel where it lies in the other view, as (x, y), and whether it is
    seen there; all pixels vote, those not seen for the outside."""
    image_size = len(seen)
    pixels, ballots = _pixels(image_size, patch_size, None)
    column, row = pixels[0].astype(int).T
    # A pixel reaches half a pixel to every side of its middle.
    landed = np.where(seen[row, column, None], np.floor((position[row, column] + 0.5) / patch_size), -1)
    return _elect(ballots, landed, image_size // patch_size)


def _elect(
    ballots: Int64[np.ndarray, " voters"], landed: Float64[np.ndarray, "voters 2"], grid: int
) -> Int64[np.ndarray, " patches"]:
    """For each patch the one where most of its voters landed, as (column, row); one beyond the grid is outside."""
    cells = (ballots + (landed[:, 1] * (grid + 2) + landed[:, 0])).astype(np.int64)
    counts = np.bincount(cells, minlength=grid * grid * (grid + 2) ** 2).reshape(grid * grid, grid + 2, grid + 2)
    counts = counts[:, 1:-1, 1:-1].reshape(grid * grid, grid * grid)
    winner = counts.argmax(axis=1)
    outside = len(ballots) // (grid * grid) - counts.sum(axis=1)
    most = np.take_along_axis(counts, winner[:, None], axis=1)[:, 0]
    return np.where((most >= outside) & (most > 0), winner, NO_PATCH)


def one_to_one(destinations: Int64[np.ndarray, " patches"]) -> Int64[np.ndarray, " patches"]:
    """Walks the patches in order and takes away (−1) every destination that an earlier patch already has."""
    result = np.full(len(destinations), NO_PATCH)
    taken, first = np.unique(destinations, return_index=True)
    result[first] = taken
    return result


def overlap(correspondence: Int16[np.ndarray, " patches"]) -> float:
    """Matched patches / patches, in [0, 1]."""
    return np.count_nonzero(correspondence >= 0) / len(correspondence)


@functools.lru_cache(maxsize=8)
def _pixels(image_size: int, patch_size: int, votes: int | None):
    """The voting pixels, float64 [1, patches × votes, 2] as (x, y), and where each one's patch begins in the count."""
    grid = image_size // patch_size
    if votes is None:
        y, x = np.divmod(np.arange(patch_size**2), patch_size)
        within = np.broadcast_to(np.stack([x, y], axis=-1), (grid * grid, patch_size**2, 2))
    else:
        # RandomState's stream is frozen by NumPy's compatibility policy (NEP 19); a Generator's is not.
        within = np.random.RandomState(0).randint(0, patch_size, (grid * grid, votes, 2))
    row, column = np.divmod(np.arange(grid * grid), grid)
    pixels = within + patch_size * np.stack([column, row], axis=-1)[:, None]
    # A patch's count has grid + 2 cells a side, and cell (0, 0) of the view sits one in from its border.
    ballots = np.repeat(np.arange(grid * grid) * (grid + 2) ** 2 + grid + 3, within.shape[1])
    return pixels.reshape(1, -1, 2).astype(np.float64), ballots
