"""Two images → keypoint matches → homography → overlap: the pair test of MIMIC (arXiv 2306.15128)."""

import dataclasses
import enum
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, UInt8

from data_prep import overlap

RATIO = 0.7
# More matches than this are needed.
MIN_MATCHES = 10
REPROJECTION_THRESHOLD = 5.0  # pixels

Image = UInt8[np.ndarray, "height width 3"]


class Reason(enum.StrEnum):
    """Why a pair is not kept."""

    TOO_FEW_MATCHES = "too few matches"
    NO_HOMOGRAPHY = "no homography"
    BELOW_BAND = "overlap below band"
    ABOVE_BAND = "overlap above band"
    NOT_CHOSEN = "not chosen by the policy"


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """SIFT keypoints (x, y) in pixels and their descriptors."""

    points: Float32[np.ndarray, "keypoints 2"]
    descriptors: Float32[np.ndarray, "keypoints 128"]


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """What connects two views.

    homography: view1 pixels → view2 pixels, both resized to image_size; its third coordinate is positive for most
      inliers.
    inliers: matches within 5 px of the homography.
    correspondence: for each patch of view1 in row-major order the patch of view2, −1 where none.
    overlap: matched patches / patches, in [0, 1].
    """

    homography: Float64[np.ndarray, "3 3"]
    inliers: int
    correspondence: Int16[np.ndarray, " patches"]
    overlap: float


def match(
    image1: UInt8[np.ndarray, "height1 width1 3"],
    image2: UInt8[np.ndarray, "height2 width2 3"],
    *,
    image_size: int = 224,
    patch_size: int = 16,
) -> Match | Reason:
    """The pair test on two RGB images of any size: the match between them, or the reason why there is none.

    Both are resized to image_size × image_size; pixels and patches of the result are those of the resized views.
    The same images give the same result, whatever ran before.

    Raises:
      ValueError: image_size is not a multiple of patch_size.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    features1, features2 = (detect(resize(image, image_size)) for image in (image1, image2))
    return match_features(features1, features2, image_size=image_size, patch_size=patch_size)


def resize(image: Image, image_size: int) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Bilinear resize to a square; the aspect ratio is not kept, as published."""
    return cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_LINEAR)


def detect(image: Image) -> Features:
    """SIFT keypoints and descriptors of an RGB image, with OpenCV's defaults."""
    keypoints, descriptors = _sift().detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if not keypoints:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    return Features(cv2.KeyPoint.convert(keypoints), descriptors)


def match_features(
    features1: Features, features2: Features, *, image_size: int = 224, patch_size: int = 16
) -> Match | Reason:
    """`match` for views whose features are at hand, detected at image_size."""
    points1, points2 = ratio_test(features1, features2)
    if len(points1) <= MIN_MATCHES:
        return Reason.TOO_FEW_MATCHES
    found = find_homography(points1, points2)
    if found is None:
        return Reason.NO_HOMOGRAPHY
    homography, inliers = found
    correspondence = overlap.correspondences(homography, image_size, patch_size)
    return Match(homography, int(inliers.sum()), correspondence, overlap.overlap(correspondence))


def ratio_test(
    features1: Features, features2: Features
) -> tuple[Float32[np.ndarray, "matches 2"], Float32[np.ndarray, "matches 2"]]:
    """Points (x, y) of view1 and view2 that match: nearest descriptor by L2, nearer than 0.7 × the second nearest."""
    if len(features1.points) < 1 or len(features2.points) < 2:
        return features1.points[:0], features2.points[:0]
    # What BFMatcher.knnMatch calls, without a Python object for each candidate.
    distances, neighbours = cv2.batchDistance(
        features1.descriptors, features2.descriptors, cv2.CV_32F, normType=cv2.NORM_L2, K=2
    )
    good = distances[:, 0] < RATIO * distances[:, 1]
    return features1.points[good], features2.points[neighbours[good, 0]]


def find_homography(
    points1: Float32[np.ndarray, "matches 2"], points2: Float32[np.ndarray, "matches 2"]
) -> tuple[Float64[np.ndarray, "3 3"], Bool[np.ndarray, " matches"]] | None:
    """The RANSAC homography view1 → view2 and which matches agree with it within 5 px; None where there is none.

    A homography that is singular counts as none. OpenCV's RANSAC starts from a fixed seed of its own at every call.
    """
    homography, inliers = cv2.findHomography(points1, points2, cv2.RANSAC, REPROJECTION_THRESHOLD)
    if homography is None or homography.size == 0 or not np.isfinite(homography).all():
        return None
    if np.linalg.matrix_rank(homography) < 3:
        return None
    inliers = inliers[:, 0].astype(bool)
    # A homography is known up to scale; the sign says which side of the horizon is in front.
    depth = points1[inliers] @ homography[2, :2] + homography[2, 2]
    return (homography if np.count_nonzero(depth > 0) * 2 >= len(depth) else -homography), inliers


@functools.cache
def _sift() -> cv2.SIFT:
    return cv2.SIFT_create()
