"""The command that tests two images: against OpenCV's own calls, known shifts, and the published rules' overlap."""

import csv

import cv2
import numpy as np
import pytest

from data_prep.match import Finding, draw, examine, verdict
from data_prep.matching import Reason
from data_prep.settings import Settings
from mimic_jax.viz import pictures
from tests import commands

SETTINGS = Settings("match", matcher="published")


def strip(seed, width=600):
    """RGB, 224 pixels high, with corners and blobs at every scale."""
    rng = np.random.default_rng(seed)
    image = np.full((224, width, 3), 128, np.uint8)
    for _ in range(3 * width // 2):
        centre, radius = (int(rng.integers(width)), int(rng.integers(224))), int(rng.integers(2, 14))
        cv2.circle(image, centre, radius, rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    return image


def shifted(pixels, seed=0):
    """Two views, the second `pixels` further to the right."""
    whole = strip(seed)
    return whole[:, :224].copy(), whole[:, pixels : pixels + 224].copy()


def command(*arguments):
    done = commands.run(["data_prep.match", *arguments])
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("matcher", ["published", "robust"])
@pytest.mark.parametrize(
    ("patches", "reason"),
    [(0, Reason.ABOVE_BAND), (2, Reason.ABOVE_BAND), (5, None), (6, None), (10, Reason.BELOW_BAND)],
)
def test_a_known_shift(patches, reason, matcher):
    """Shifted by whole patches, 14 − patches of 14 columns are in both."""
    found = examine(*shifted(16 * patches), Settings("match", matcher=matcher))
    assert found.match.overlap == pytest.approx((14 - patches) / 14, abs=0.04)
    assert found.reason == reason
    assert verdict(found, SETTINGS).startswith("kept" if reason is None else f"not kept ({reason.value})")


def test_keypoints_and_matches_are_those_of_opencv():
    views = shifted(70)
    sift, matcher = cv2.SIFT_create(), cv2.BFMatcher(cv2.NORM_L2)
    (points1, first), (points2, second) = (
        sift.detectAndCompute(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), None) for view in views
    )
    good = [near for near, far in matcher.knnMatch(first, second, k=2) if near.distance < 0.7 * far.distance]
    found = examine(*views, SETTINGS)
    assert found.keypoints == (len(points1), len(points2))
    assert found.matches == len(good) > 50
    # A shift and nothing else: nearly all matches agree with it.
    assert 0.9 * found.matches < found.match.inliers <= found.matches


def test_views_that_have_nothing_in_common():
    found = examine(strip(0)[:, :224].copy(), strip(1)[:, :224].copy(), SETTINGS)
    assert (found.match, found.reason) == (None, Reason.TOO_FEW_MATCHES)
    assert f"{found.matches} matches, and more than 10 are needed" in verdict(found, SETTINGS)
    blank = np.zeros((50, 80, 3), np.uint8)
    assert examine(blank, blank, SETTINGS).keypoints == (0, 0)
    assert "no homography" in verdict(Finding((9, 9), 20, None, Reason.NO_HOMOGRAPHY), SETTINGS)


def test_the_published_rules_overlap(real):
    lines = list(csv.DictReader((real / "reference_overlap.csv").open()))
    lines = [line for line in lines if line["folder"] == "nyu_0" and line["overlap_mean"]]
    assert len(lines) > 20
    for line in lines:
        views = [
            cv2.imread(str(real / "sequences/nyu_0" / line[view]))[..., ::-1].copy() for view in ("view1", "view2")
        ]
        found = examine(*views, SETTINGS)
        assert 100 * found.match.overlap == pytest.approx(float(line["overlap_mean"]), abs=4)
        assert found.match.inliers == int(line["inliers"])


def test_tints_say_which_patch_is_where():
    correspondence = np.full(16, -1, np.int16)
    correspondence[[0, 3, 9]] = [5, 12, 3]
    views = np.full((40, 60, 3), 100, np.uint8), np.full((80, 20, 3), 100, np.uint8)
    tinted = pictures.tint_matches(*views, correspondence)
    assert [each.shape for each in tinted] == [(40, 60, 3), (80, 20, 3)]

    def patch(view, number):
        """The one colour that a patch has."""
        height, width = view.shape[0] // 4, view.shape[1] // 4
        pixels = view[number // 4 * height :, number % 4 * width :][:height, :width].reshape(-1, 3)
        assert (pixels == pixels[0]).all()
        return tuple(pixels[0].tolist())

    colours = [patch(tinted[0], first) for first in (0, 3, 9)]
    assert colours == [patch(tinted[1], second) for second in (5, 12, 3)]
    assert len(set(colours)) == 3
    for view, matched in zip(tinted, ({0, 3, 9}, {5, 12, 3}), strict=True):
        assert {patch(view, number) for number in set(range(16)) - matched} == {(30, 30, 30)}


def test_the_picture_has_the_views_above_the_tints():
    views = shifted(96)
    found = examine(*views, SETTINGS)
    picture = draw(*views, found, SETTINGS)
    assert picture.shape == (20 + 448 + 4 + 448, 448 + 4 + 448, 3)
    assert (picture[20:468:2, :448:2] == views[0]).all()
    assert (picture[20:468:2, 452::2] == views[1]).all()
    # What only the first view has is dark: the six columns on its left.
    dark, tinted = picture[472:, : 5 * 32], picture[472:, 7 * 32 : 448]
    assert dark.mean() < 0.5 * tinted.mean()
    without = draw(*views, Finding((1, 1), 0, None, Reason.TOO_FEW_MATCHES), SETTINGS)
    assert without.shape == (20 + 448, 900, 3)


def test_the_command(tmp_path):
    paths = [tmp_path / f"viéw {number}.png" for number in (1, 2)]
    for path, view in zip(paths, shifted(96), strict=True):
        cv2.imwrite(str(path), view[..., ::-1])
    code, out, err = command(*paths)
    assert (code, err) == (0, "")
    assert "kept: the overlap is inside the band of 50–75 %" in out
    assert "of 196 patches" in out
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}, "no picture was asked for"
    picture = tmp_path / "new" / "match.png"
    code, out, err = command(*paths, f"--output={picture}", "--max_overlap=0.52", "--image_size=112", "--patch_size=8")
    assert (code, err) == (0, "")
    assert "not kept (overlap above band)" in out
    assert "the band of 50–52 %" in out
    assert cv2.imread(str(picture)).shape == (20 + 448 + 4 + 448, 900, 3)


def test_one_clear_line_for_each_mistake(tmp_path):
    view, text = tmp_path / "view.png", tmp_path / "text.png"
    cv2.imwrite(str(view), strip(0))
    text.write_text("no image")
    for arguments, message in [
        ([view, tmp_path / "none.png"], "none.png: image cannot be opened"),
        ([view, text], "text.png: image cannot be decoded"),
        ([tmp_path, view], f"{tmp_path}: "),
        ([view], "VIEW2 missing"),
        ([view, view, view], "unexpected argument"),
        ([view, view, "--image_size=100"], "--image_size=100: must be a multiple"),
        ([view, view, "--min_overlap=0.9"], "--min_overlap=0.9"),
        ([view, view, "--matcher=best"], "matcher"),
        ([view, view, f"--output={tmp_path / 'none' / 'x.jpg'}"], "ends in .png"),
        ([view, view, f"--output={tmp_path / 'text.png' / 'x.png'}"], "cannot be written"),
    ]:
        code, _, err = command(*arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
