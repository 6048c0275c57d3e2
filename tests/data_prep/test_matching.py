"""The pair test: published overlaps of real images, known homographies, and reasons for no match."""

import csv

import cv2
import numpy as np
import pytest

from data_prep import matching
from data_prep.matching import Features, Match, Reason
from data_prep.sources.frames import read_image


def texture(seed, size=640):
    """An RGB image with corners and blobs at every scale."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), 128, np.uint8)
    for _ in range(700):
        centre, radius = rng.integers(0, size, 2), int(rng.integers(3, 40))
        cv2.circle(image, centre.tolist(), radius, rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    return image


def warped(image, homography):
    """What view2 sees: the pixel of view1 at p appears at homography · p."""
    return cv2.warpPerspective(image, homography, image.shape[1::-1], borderMode=cv2.BORDER_CONSTANT)


def test_overlap_equals_the_published_rules_on_real_images(real, capsys):
    differences, disagreements = [], []
    for row in csv.DictReader((real / "reference_overlap.csv").open()):
        folder = real / ("pairs" if row["folder"] == "pairs" else f"sequences/{row['folder']}")
        match = matching.match(read_image(folder / row["view1"]), read_image(folder / row["view2"]))
        if isinstance(match, Reason) != (row["overlap_mean"] == ""):
            disagreements.append(row)
        elif isinstance(match, Match):
            assert match.inliers == int(row["inliers"])
            differences.append(abs(100 * match.overlap - float(row["overlap_mean"])))
    differences = np.array(differences)
    with capsys.disabled():
        print(
            f"\noverlap against the published rules, {len(differences)} pairs: "
            f"{(differences <= 4).mean():.1%} within 4 points, "
            f"mean {differences.mean():.2f}, most {differences.max():.2f}; "
            f"{len(disagreements)} disagree on whether there is a homography"
        )
    assert not disagreements
    assert (differences <= 4).mean() >= 0.95


@pytest.mark.parametrize("seed", range(4))
def test_a_known_homography_is_found(seed):
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [223, 0], [223, 223], [0, 223]], np.float32)
    moved = (corners + rng.uniform(-40, 40, (4, 2))).astype(np.float32)
    truth = cv2.getPerspectiveTransform(corners, moved)
    image = cv2.resize(texture(seed), (224, 224), interpolation=cv2.INTER_AREA)
    match = matching.match(image, warped(image, truth))
    assert isinstance(match, Match)
    assert match.inliers > 30
    found = cv2.perspectiveTransform(corners[None], match.homography)[0]
    assert np.abs(found - moved).max() < 2
    inside = np.mean(match.correspondence >= 0)
    assert match.overlap == inside
    area, _ = cv2.intersectConvexConvex(corners, moved)
    back, _ = cv2.intersectConvexConvex(corners, cv2.perspectiveTransform(corners[None], np.linalg.inv(truth))[0])
    assert 0.6 * min(area, back) / 224**2 < match.overlap < min(area, back) / 224**2 + 0.05


@pytest.mark.parametrize(("across", "down"), [(0, 0), (3, 0), (-2, 4)])
def test_views_shifted_by_whole_patches(across, down):
    # Two crops of one picture, so that no border is made up.
    picture = texture(7)
    view1 = picture[200:424, 200:424]
    view2 = picture[200 - 16 * down : 424 - 16 * down, 200 - 16 * across : 424 - 16 * across]
    match = matching.match(np.ascontiguousarray(view1), np.ascontiguousarray(view2))
    expected = [
        (row + down) * 14 + column + across if 0 <= row + down < 14 and 0 <= column + across < 14 else -1
        for row in range(14)
        for column in range(14)
    ]
    assert match.correspondence.tolist() == expected


def test_matches_equal_opencvs_matcher():
    image = texture(1)
    features1 = matching.detect(matching.resize(image, 224))
    features2 = matching.detect(matching.resize(np.ascontiguousarray(image[60:, 90:]), 224))
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(features1.descriptors, features2.descriptors, k=2)
    good = [near for near, second in pairs if near.distance < 0.7 * second.distance]
    points1, points2 = matching.ratio_test(features1, features2)
    assert len(good) > 20
    assert points1.tolist() == [features1.points[m.queryIdx].tolist() for m in good]
    assert points2.tolist() == [features2.points[m.trainIdx].tolist() for m in good]


def test_the_same_whatever_ran_before_and_on_how_many_threads():
    picture = texture(3)
    view1, view2 = picture[:400, :400].copy(), picture[100:500, 80:480].copy()
    threads = cv2.getNumThreads()
    results = []
    try:
        for seed, count in ((0, 1), (1, 2), (12345, 4)):
            cv2.setRNGSeed(seed)
            cv2.setNumThreads(count)
            matching.match(texture(seed), picture)
            results.append(matching.match(view1, view2))
    finally:
        cv2.setNumThreads(threads)
    for other in results[1:]:
        assert other.homography.tobytes() == results[0].homography.tobytes()
        assert other.correspondence.tolist() == results[0].correspondence.tolist()
        assert other.inliers == results[0].inliers


def test_inliers_lie_in_front_of_the_horizon():
    # The top left corner of view1 is behind the horizon of this view, so OpenCV's h33 = 1 has the sign wrong.
    rng = np.random.default_rng(0)
    points1 = rng.uniform(100, 223, (60, 2)).astype(np.float32)
    truth = np.array([[120.0, 10, 900], [5, 110, 300], [1, 0.2, -80]])
    points2 = cv2.perspectiveTransform(points1[None], truth)[0]
    homography, inliers = matching.find_homography(points1, points2)
    assert inliers.all()
    assert (np.c_[points1, np.ones(60)] @ homography[2] > 0).all()
    np.testing.assert_allclose(homography / homography[2, 2], truth / truth[2, 2], rtol=1e-2)


def test_reasons_for_no_match():
    blank = np.zeros((100, 150, 3), np.uint8)
    assert matching.match(blank, blank) is Reason.TOO_FEW_MATCHES
    assert matching.match(texture(0), blank) is Reason.TOO_FEW_MATCHES
    assert matching.match(blank, texture(0)) is Reason.TOO_FEW_MATCHES
    assert matching.match(texture(0), texture(1)) is Reason.TOO_FEW_MATCHES
    rng = np.random.default_rng(0)
    descriptors = rng.uniform(0, 255, (11, 128)).astype(np.float32)
    one_place = Features(np.full((11, 2), 50, np.float32), descriptors)
    assert matching.match_features(one_place, one_place) is Reason.NO_HOMOGRAPHY


@pytest.mark.parametrize(("keypoints", "enough"), [(10, False), (11, True)])
def test_more_than_ten_matches_are_needed(keypoints, enough):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 224, (keypoints, 2)).astype(np.float32)
    features = Features(points, rng.uniform(0, 255, (keypoints, 128)).astype(np.float32))
    assert isinstance(matching.match_features(features, features), Match) == enough


def test_one_descriptor_has_no_second_nearest():
    one = Features(np.zeros((1, 2), np.float32), np.zeros((1, 128), np.float32))
    many = Features(np.zeros((20, 2), np.float32), np.zeros((20, 128), np.float32))
    assert matching.match_features(many, one) is Reason.TOO_FEW_MATCHES
    assert matching.match_features(one, many) is Reason.TOO_FEW_MATCHES


def test_image_size_must_be_whole_patches():
    with pytest.raises(ValueError, match="multiple"):
        matching.match(texture(0), texture(0), image_size=225)


def test_other_patch_sizes():
    match = matching.match(texture(0), texture(0), image_size=112, patch_size=14)
    assert match.correspondence.tolist() == list(range(64))
