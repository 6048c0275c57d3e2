"""The pair test: published overlaps of real images, known homographies, and reasons for no match."""

import concurrent.futures
import csv
import hashlib
import itertools
import multiprocessing

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("matcher", matching.MATCHERS)
@pytest.mark.parametrize("seed", range(4))
def test_a_known_homography_is_found(seed, matcher):
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [223, 0], [223, 223], [0, 223]], np.float32)
    moved = (corners + rng.uniform(-40, 40, (4, 2))).astype(np.float32)
    truth = cv2.getPerspectiveTransform(corners, moved)
    image = cv2.resize(texture(seed), (224, 224), interpolation=cv2.INTER_AREA)
    match = matching.match(image, warped(image, truth), matcher=matcher)
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


def whole_numbers(rng, count):
    """Like SIFT's descriptors: whole numbers up to 255."""
    return np.minimum(rng.gamma(0.5, 30, (count, 128)), 255).astype(np.uint8).astype(np.float32)


# Both sides of the 512 rows whose distances are held at a time.
@pytest.mark.parametrize(("count1", "count2"), [(1, 2), (7, 3), (511, 40), (513, 700), (1300, 1100)])
def test_nearest_neighbours_equal_opencvs_to_the_last_bit(count1, count2):
    rng = np.random.default_rng(count1)
    descriptors2 = whole_numbers(rng, count2)
    # Most have a neighbour near enough to pass the ratio test, some only just.
    descriptors1 = descriptors2[rng.integers(0, count2, count1)] + rng.integers(0, 30, (count1, 128)).astype(np.float32)
    features1, features2 = (
        Features(np.c_[np.arange(len(d)), np.arange(len(d))].astype(np.float32), d)
        for d in (descriptors1, descriptors2)
    )
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descriptors1, descriptors2, k=2)
    ratio = np.float32(0.7)
    good = [near for near, second in pairs if np.float32(near.distance) < ratio * np.float32(second.distance)]
    points1, points2 = matching.ratio_test(features1, features2)
    assert points1[:, 0].tolist() == [m.queryIdx for m in good]
    assert points2[:, 0].tolist() == [m.trainIdx for m in good]
    assert len(good) > 0


def test_published_is_mimics_way():
    published = matching.MATCHERS["published"]
    assert (published.root_sift, published.mutual, published.ratio) == (False, False, 0.7)
    assert (published.estimator, published.threshold, published.min_inliers) == ("ransac", 5.0, 0)


def test_root_sift_equals_its_definition():
    image = matching.resize(texture(5), 224)
    plain, rooted = (matching.detect(image, matcher) for matcher in ("published", "robust"))
    assert rooted.points.tolist() == plain.points.tolist()
    expected = np.sqrt(plain.descriptors.astype(np.float64) / plain.descriptors.sum(axis=1, keepdims=True, dtype=float))
    np.testing.assert_allclose(rooted.descriptors / 1024, expected, rtol=0, atol=0.51 / 1024)
    # An empty descriptor has no direction.
    assert not matching.root_sift(np.zeros((1, 128), np.float32)).any()


def test_robust_matches_are_mutual_nearest_neighbours_within_the_ratio():
    picture = texture(2)
    view1, view2 = picture[:400, :400].copy(), warped(picture, np.array([[1, 0.2, -60], [0, 0.9, -40], [0, 4e-4, 1.0]]))
    features1, features2 = (matching.detect(matching.resize(view, 224), "robust") for view in (view1, view2))
    first, second = (features.descriptors.astype(np.float64) for features in (features1, features2))
    distances = np.linalg.norm(first[:, None] - second, axis=2)
    ordered = np.sort(distances, axis=1)
    mutual = distances.min(axis=0)[distances.argmin(axis=1)] == ordered[:, 0]
    within = ordered[:, 0] < 0.8 * ordered[:, 1]
    points1, points2 = matching.ratio_test(features1, features2, "robust")
    # The test must be able to tell: some are within the ratio and not mutual, some mutual and not within.
    assert (within & ~mutual).any()
    assert (mutual & ~within).any()
    assert points1.tolist() == features1.points[mutual & within].tolist()
    assert points2.tolist() == features2.points[distances.argmin(axis=1)[mutual & within]].tolist()


def test_mutual_neighbours_of_many_keypoints_equal_numpys():
    # More than are held at a time; each of view2 has several of view1 near it.
    rng = np.random.default_rng(0)
    descriptors2 = whole_numbers(rng, 300)
    near = rng.integers(0, 300, 1300)
    descriptors1 = descriptors2[near] + rng.integers(0, 30, (1300, 128)).astype(np.float32)
    wide1, wide2 = descriptors1.astype(np.float64), descriptors2.astype(np.float64)
    squared = (wide1**2).sum(axis=1)[:, None] - 2 * wide1 @ wide2.T + (wide2**2).sum(axis=1)
    ordered = np.sort(squared, axis=1)
    mutual = squared.min(axis=0)[squared.argmin(axis=1)] == ordered[:, 0]
    good = mutual & (np.sqrt(ordered[:, 0]) < 0.8 * np.sqrt(ordered[:, 1]))
    features1, features2 = (
        Features(np.repeat(np.arange(len(d), dtype=np.float32)[:, None], 2, 1), d) for d in (descriptors1, descriptors2)
    )
    points1, points2 = matching.ratio_test(features1, features2, "robust")
    assert points1[:, 0].tolist() == np.flatnonzero(good).tolist()
    assert points2[:, 0].tolist() == squared.argmin(axis=1)[good].tolist()
    assert 200 < len(points1) < 400


@pytest.mark.parametrize("matcher", matching.MATCHERS)
@pytest.mark.parametrize("outliers", [0.0, 0.5, 0.7])
def test_a_homography_is_found_among_outliers(matcher, outliers):
    rng = np.random.default_rng(int(10 * outliers))
    truth = np.array([[0.9, 0.15, 12], [-0.1, 1.05, 6], [4e-4, -2e-4, 1]])
    points1 = rng.uniform(0, 223, (400, 2)).astype(np.float32)
    exact = cv2.perspectiveTransform(points1[None], truth)[0]
    wrong = rng.random(400) < outliers
    points2 = np.where(wrong[:, None], rng.uniform(0, 223, (400, 2)), exact).astype(np.float32)
    homography, inliers = matching.find_homography(points1, points2, matcher)
    corners = np.array([[[0, 0], [223, 0], [223, 223], [0, 223.0]]])
    moved = [cv2.perspectiveTransform(corners, each)[0] for each in (homography, truth)]
    # An outlier within the threshold by chance may pull a little.
    assert np.abs(moved[0] - moved[1]).max() < (0.01 if outliers == 0 else 2)
    errors = np.linalg.norm(cv2.perspectiveTransform(points1[None], homography)[0] - points2, axis=1)
    assert inliers.tolist() == (errors <= matching.MATCHERS[matcher].threshold).tolist()
    assert inliers[~wrong].all()


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(11, 60),
    places=st.integers(1, 60),
    matcher=st.sampled_from(sorted(matching.MATCHERS)),
)
def test_any_points_give_a_sound_homography_or_none(seed, count, places, matcher):
    # Few places: points that coincide or lie on a line.
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 224, (2, places, 2)).astype(np.float32)
    points1, points2 = drawn[0, rng.integers(0, places, count)], drawn[1, rng.integers(0, places, count)]
    found = matching.find_homography(points1, points2, matcher)
    if found is not None:
        homography, inliers = found
        assert np.isfinite(homography).all()
        assert np.linalg.matrix_rank(homography) == 3
        depth = np.c_[points1, np.ones(count)][inliers] @ homography[2]
        assert np.count_nonzero(depth > 0) * 2 >= inliers.sum()


@pytest.mark.parametrize("matcher", matching.MATCHERS)
def test_a_view_matches_itself_patch_by_patch(matcher):
    match = matching.match(texture(4), texture(4), matcher=matcher)
    assert match.correspondence.tolist() == list(range(196))
    np.testing.assert_allclose(match.homography / match.homography[2, 2], np.eye(3), atol=1e-6)


def digest(number: int) -> str:
    """What every matcher makes of two views of picture `number`, after other work of its own."""
    picture = texture(number)
    result = hashlib.sha256()
    for matcher in matching.MATCHERS:
        matching.match(texture(number + 100), picture, matcher=matcher)
        # Half of view2 is another picture, so that the estimators have outliers to draw.
        view2 = picture[100:500, 80:480].copy()
        view2[:, 200:] = texture(number + 50)[:400, :200]
        match = matching.match(picture[:400, :400].copy(), view2, matcher=matcher)
        result.update(match.homography.tobytes() + match.correspondence.tobytes() + bytes([match.inliers % 256]))
        # So noisy that another draw gives another homography.
        rng = np.random.default_rng(number)
        points1 = rng.uniform(0, 223, (80, 2)).astype(np.float32)
        points2 = (points1 * [[0.8, 1.1]] + rng.normal(0, 12, (80, 2))).astype(np.float32)
        homography, _ = matching.find_homography(points1, points2, matcher)
        result.update(homography.tobytes())
    return result.hexdigest()


def test_the_same_in_any_thread_or_process():
    numbers = [0, 1, 2]
    alone = [digest(number) for number in numbers]
    assert len(set(alone)) == len(alone)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        assert list(threads.map(digest, numbers)) == alone
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as processes:
        assert list(processes.map(digest, numbers[::-1])) == alone[::-1]


@pytest.mark.parametrize("matcher", matching.MATCHERS)
def test_the_same_whatever_ran_before_and_on_how_many_threads(matcher):
    picture = texture(3)
    view1, view2 = picture[:400, :400].copy(), picture[100:500, 80:480].copy()
    threads = cv2.getNumThreads()
    results = []
    try:
        for seed, count in ((0, 1), (1, 2), (12345, 4)):
            cv2.setRNGSeed(seed)
            cv2.setNumThreads(count)
            matching.match(texture(seed), picture, matcher=matcher)
            results.append(matching.match(view1, view2, matcher=matcher))
    finally:
        cv2.setNumThreads(threads)
    for other in results[1:]:
        assert other.homography.tobytes() == results[0].homography.tobytes()
        assert other.correspondence.tolist() == results[0].correspondence.tolist()
        assert other.inliers == results[0].inliers


# The first view is a mirror image, which no camera sees of an opaque plane; "robust" does not take it.
@pytest.mark.parametrize(
    ("matcher", "across"),
    [("published", [120, 10, 900]), ("published", [220, 10, -40000]), ("robust", [220, 10, -40000])],
)
def test_inliers_lie_in_front_of_the_horizon(matcher, across):
    # The top left corner of view1 is behind the horizon of this view, so OpenCV's h33 = 1 has the sign wrong.
    rng = np.random.default_rng(0)
    points1 = rng.uniform(100, 223, (60, 2)).astype(np.float32)
    truth = np.array([across, [5, 110, 300], [1, 0.2, -80]], np.float64)
    points2 = cv2.perspectiveTransform(points1[None], truth)[0]
    homography, inliers = matching.find_homography(points1, points2, matcher)
    assert inliers.all()
    assert (np.c_[points1, np.ones(60)] @ homography[2] > 0).all()
    np.testing.assert_allclose(homography / homography[2, 2], truth / truth[2, 2], rtol=1e-2)


@pytest.mark.parametrize("matcher", matching.MATCHERS)
def test_reasons_for_no_match(matcher):
    blank = np.zeros((100, 150, 3), np.uint8)
    assert matching.match(blank, blank, matcher=matcher) is Reason.TOO_FEW_MATCHES
    assert matching.match(texture(0), blank, matcher=matcher) is Reason.TOO_FEW_MATCHES
    assert matching.match(blank, texture(0), matcher=matcher) is Reason.TOO_FEW_MATCHES
    rng = np.random.default_rng(0)
    descriptors = rng.uniform(0, 255, (11, 128)).astype(np.float32)
    one_place = Features(np.full((11, 2), 50, np.float32), descriptors)
    assert matching.match_features(one_place, one_place, matcher=matcher) is Reason.NO_HOMOGRAPHY


@pytest.mark.parametrize(("right", "found"), [(7, False), (8, True)])
def test_robust_needs_eight_inliers(right, found):
    # The wrong matches are mirrored and far apart, so that no homography of theirs takes in many.
    rng = np.random.default_rng(3)
    points1 = rng.uniform(0, 223, (right + 6, 2)).astype(np.float32)
    points2 = points1 + np.float32(20)
    points2[right:] = 100 * rng.choice([-1, 1], (6, 2)) + 900 * np.arange(1, 7)[:, None]
    assert (matching.find_homography(points1, points2, "robust") is not None) == found
    _, inliers = matching.find_homography(points1, points2, "published")
    assert inliers.sum() == right


def test_unrelated_pictures_are_not_kept():
    assert matching.match(texture(0), texture(1)) is Reason.TOO_FEW_MATCHES
    features = [matching.detect(matching.resize(texture(seed), 224), "robust") for seed in range(8)]
    for first, second in itertools.combinations(features, 2):
        assert isinstance(matching.match_features(first, second, matcher="robust"), Reason)


@pytest.mark.parametrize("matcher", matching.MATCHERS)
@pytest.mark.parametrize(("keypoints", "enough"), [(10, False), (11, True)])
def test_more_than_ten_matches_are_needed(keypoints, enough, matcher):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 224, (keypoints, 2)).astype(np.float32)
    features = Features(points, rng.uniform(0, 255, (keypoints, 128)).astype(np.float32))
    assert isinstance(matching.match_features(features, features, matcher=matcher), Match) == enough


@pytest.mark.parametrize("matcher", matching.MATCHERS)
def test_one_descriptor_or_none_has_no_second_nearest(matcher):
    one = Features(np.zeros((1, 2), np.float32), np.zeros((1, 128), np.float32))
    many = Features(np.zeros((20, 2), np.float32), np.zeros((20, 128), np.float32))
    none = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    for few in (none, one):
        assert matching.match_features(many, few, matcher=matcher) is Reason.TOO_FEW_MATCHES
        assert matching.match_features(few, many, matcher=matcher) is Reason.TOO_FEW_MATCHES
        assert matching.match_features(few, few, matcher=matcher) is Reason.TOO_FEW_MATCHES


def test_image_size_must_be_whole_patches():
    with pytest.raises(ValueError, match="multiple"):
        matching.match(texture(0), texture(0), image_size=225)


def test_other_patch_sizes():
    match = matching.match(texture(0), texture(0), image_size=112, patch_size=14)
    assert match.correspondence.tolist() == list(range(64))
