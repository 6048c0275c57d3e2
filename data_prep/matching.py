"""Two images → keypoint matches → homography → overlap: the pair test of MIMIC (arXiv 2306.15128)."""

import dataclasses
import enum
import functools
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, UInt8

from data_prep import overlap

# More matches than this are needed.
MIN_MATCHES = 10

Image = UInt8[np.ndarray, "height width 3"]


class Reason(enum.StrEnum):
    """Why a pair is not kept."""

    TOO_FEW_MATCHES = "too few matches"
    NO_HOMOGRAPHY = "no homography"
    BELOW_BAND = "overlap below band"
    ABOVE_BAND = "overlap above band"
    NOT_CHOSEN = "not chosen by the policy"


@dataclasses.dataclass(frozen=True)
class Matcher:
    """How two views are matched.

    root_sift: descriptors are compared by Hellinger's distance (RootSIFT: Arandjelović and Zisserman, CVPR 2012).
    mutual: a match counts only where the point of view1, too, is the nearest to the point of view2.
    ratio: the nearest descriptor must be nearer than this × the second nearest (Lowe, IJCV 2004).
    estimator: "ransac", OpenCV's own; or LO-RANSAC (Chum et al., DAGM 2003) whose score is that of "msac" (Torr and
      Zisserman, CVIU 2000) or "magsac" (MAGSAC++: Barath et al., CVPR 2020).
    threshold: how far from the homography an inlier may be, pixels.
    min_inliers: a homography with fewer is chance, and counts as none.
    """

    root_sift: bool
    mutual: bool
    ratio: float
    estimator: Literal["ransac", "msac", "magsac"]
    threshold: float
    min_inliers: int


# "published" is MIMIC's way. "robust" is what measured best (benchmarks/curation_quality.py): its wide threshold suits
# scenes that are no single plane, where what is asked of a match is its patch, not its pixel. Between views of unlike
# rooms chance gives it 4 to 6 inliers, rarely 7 or 8.
MATCHERS = {
    "published": Matcher(root_sift=False, mutual=False, ratio=0.7, estimator="ransac", threshold=5.0, min_inliers=0),
    "robust": Matcher(root_sift=True, mutual=True, ratio=0.8, estimator="msac", threshold=10.0, min_inliers=8),
}

_SCORES = {"msac": cv2.SCORE_METHOD_MSAC, "magsac": cv2.SCORE_METHOD_MAGSAC}
# The length of RootSIFT descriptors. They are rounded: products of whole numbers this small are exact in float32, so
# that distances do not depend on the order in which a processor adds.
_ROOT_LENGTH = 1024
# Keypoints of view1 whose distances to all of view2 are held at a time, at most.
_ROWS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """SIFT keypoints (x, y) in pixels and their descriptors, those of RootSIFT where the matcher has it."""

    points: Float32[np.ndarray, "keypoints 2"]
    descriptors: Float32[np.ndarray, "keypoints 128"]


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """What connects two views.

    homography: view1 pixels → view2 pixels, both resized to image_size; its third coordinate is positive for most
      inliers.
    inliers: matches within the matcher's threshold of the homography.
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
    matcher: str = "published",
) -> Match | Reason:
    """The pair test on two RGB images of any size: the match between them, or the reason why there is none.

    Both are resized to image_size × image_size; pixels and patches of the result are those of the resized views.
    The same images give the same result, whatever ran before. `matcher` is a key of MATCHERS.

    Raises:
      ValueError: image_size is not a multiple of patch_size.
    """
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    features1, features2 = (detect(resize(image, image_size), matcher) for image in (image1, image2))
    return match_features(features1, features2, image_size=image_size, patch_size=patch_size, matcher=matcher)


def resize(image: Image, image_size: int) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Bilinear resize to a square; the aspect ratio is not kept, as published."""
    return cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_LINEAR)


def detect(image: Image, matcher: str = "published") -> Features:
    """SIFT keypoints and descriptors of an RGB image, with OpenCV's defaults; `matcher` is a key of MATCHERS."""
    keypoints, descriptors = _sift().detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if not keypoints:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    if MATCHERS[matcher].root_sift:
        descriptors = root_sift(descriptors)
    return Features(cv2.KeyPoint.convert(keypoints), descriptors)


def root_sift(descriptors: Float32[np.ndarray, "keypoints 128"]) -> Float32[np.ndarray, "keypoints 128"]:
    """Square roots of the descriptors over their sums, × 1024 and rounded (Arandjelović and Zisserman, CVPR 2012)."""
    sums = np.maximum(descriptors.sum(axis=1, keepdims=True), 1)
    return np.rint(np.sqrt(descriptors / sums) * np.float32(_ROOT_LENGTH))


def match_features(
    features1: Features,
    features2: Features,
    *,
    image_size: int = 224,
    patch_size: int = 16,
    matcher: str = "published",
) -> Match | Reason:
    """`match` for views whose features are at hand, detected at image_size for the same matcher."""
    points1, points2 = ratio_test(features1, features2, matcher)
    if len(points1) <= MIN_MATCHES:
        return Reason.TOO_FEW_MATCHES
    found = find_homography(points1, points2, matcher)
    if found is None:
        return Reason.NO_HOMOGRAPHY
    homography, inliers = found
    correspondence = overlap.correspondences(homography, image_size, patch_size)
    return Match(homography, int(inliers.sum()), correspondence, overlap.overlap(correspondence))


def ratio_test(
    features1: Features, features2: Features, matcher: str = "published"
) -> tuple[Float32[np.ndarray, "matches 2"], Float32[np.ndarray, "matches 2"]]:
    """Points (x, y) of view1 and view2 that match, in the order of view1's keypoints.

    Nearest descriptor by L2, nearer than the matcher's ratio × the second nearest; where matches must be mutual, no
    other descriptor of view1 is nearer to that one.
    """
    if len(features1.points) < 1 or len(features2.points) < 2:
        return features1.points[:0], features2.points[:0]
    neighbours, nearest, second, mutual = _nearest(features1.descriptors, features2.descriptors)
    good = nearest < MATCHERS[matcher].ratio * second
    if MATCHERS[matcher].mutual:
        good &= mutual
    return features1.points[good], features2.points[neighbours[good]]


def _nearest(descriptors1, descriptors2):
    """Of each descriptor of view1: which of view2 is nearest, how far it and the second nearest are, and whether no
    other descriptor of view1 is nearer to it.

    What BFMatcher.knnMatch gives, to the last bit: SIFT's descriptors are whole numbers, so |a|² − 2 a·b + |b|² is
    exact in float32, and a product of matrices takes a fifth of the time that distances one by one do.
    """
    count = len(descriptors1)
    neighbours = np.empty(count, np.intp)
    nearest, second = np.empty(count, np.float32), np.empty(count, np.float32)
    least = np.full(len(descriptors2), np.inf, np.float32)
    squares1, squares2 = (np.einsum("ij,ij->i", each, each) for each in (descriptors1, descriptors2))
    # Blocks of equal size, because OpenCV's product is slow with few rows.
    bounds = np.linspace(0, count, -(-count // _ROWS) + 1).astype(int)
    for block in map(slice, bounds[:-1], bounds[1:]):
        squared = cv2.gemm(descriptors1[block], descriptors2, -2, None, 0, flags=cv2.GEMM_2_T)
        squared += squares1[block, None]
        squared += squares2
        np.minimum(least, squared.min(axis=0), out=least)
        found = squared.argmin(axis=1)[:, None]
        neighbours[block] = found[:, 0]
        nearest[block] = np.take_along_axis(squared, found, axis=1)[:, 0]
        np.put_along_axis(squared, found, np.inf, axis=1)
        second[block] = squared.min(axis=1)
    mutual = nearest <= least[neighbours]
    # Descriptors that are not whole numbers may come out below 0 by rounding.
    return neighbours, np.sqrt(np.maximum(nearest, 0)), np.sqrt(np.maximum(second, 0)), mutual


def find_homography(
    points1: Float32[np.ndarray, "matches 2"],
    points2: Float32[np.ndarray, "matches 2"],
    matcher: str = "published",
) -> tuple[Float64[np.ndarray, "3 3"], Bool[np.ndarray, " matches"]] | None:
    """The homography view1 → view2 and which matches agree with it within the matcher's threshold; None where there is
    none.

    A homography that is singular counts as none, and so does one with too few inliers for the matcher. Every call
    starts from the same seed.
    """
    way = MATCHERS[matcher]
    if way.estimator == "ransac":
        homography, inliers = cv2.findHomography(points1, points2, cv2.RANSAC, way.threshold)
    else:
        homography, inliers = cv2.findHomography(points1, points2, _usac(way.estimator, way.threshold))
    if homography is None or homography.size == 0 or not np.isfinite(homography).all():
        return None
    if np.linalg.matrix_rank(homography) < 3:
        return None
    inliers = inliers[:, 0].astype(bool)
    if np.count_nonzero(inliers) < way.min_inliers:
        return None
    # A homography is known up to scale; the sign says which side of the horizon is in front.
    depth = points1[inliers] @ homography[2, :2] + homography[2, 2]
    return (homography if np.count_nonzero(depth > 0) * 2 >= len(depth) else -homography), inliers


def _usac(estimator: str, threshold: float) -> cv2.UsacParams:
    parameters = cv2.UsacParams()
    parameters.threshold = threshold
    parameters.score = _SCORES[estimator]
    parameters.loMethod = cv2.LOCAL_OPTIM_INNER_AND_ITER_LO
    # As many tries and as sure as cv2.RANSAC.
    parameters.maxIterations, parameters.confidence = 2000, 0.995
    # Several threads would race for the best model.
    parameters.isParallel, parameters.randomGeneratorState = False, 0
    return parameters


@functools.cache
def _sift() -> cv2.SIFT:
    return cv2.SIFT_create()
