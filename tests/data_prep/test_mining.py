"""The pairs of one scene: how frames are prepared, what is kept, and what is counted."""

import errno
import functools
import os
import signal
import weakref

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import dataset, matching, workers
from data_prep.mining import Tally, mine_apart, mine_scene, prepare
from data_prep.settings import Settings, choose
from data_prep.sources.scene import ReadyPair, Sample, Scene, SceneProblem
from mimic_jax import records
from mimic_jax.command import InputError


def texture(seed, height=120, width=1400):
    """An RGB strip with corners and blobs at every scale."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (200, 40, 20), np.uint8)
    for _ in range(width):
        centre, radius = (int(rng.integers(width)), int(rng.integers(height))), int(rng.integers(2, 14))
        cv2.circle(image, centre, radius, tuple(map(int, rng.integers(0, 256, 3))), -1, cv2.LINE_AA)
    return image


def views(count, shift, seed=0):
    strip = texture(seed, width=160 + shift * count)
    return [np.ascontiguousarray(strip[:, shift * i : shift * i + 160]) for i in range(count)]


def scene(samples, **fields):
    return Scene("a scene", 1, functools.partial(iter, samples), **fields)


def frames(images):
    return scene([Sample(10 * tick, tick, image) for tick, image in enumerate(images)])


def mine(scene, settings):
    tally = Tally()
    return list(mine_scene(scene, settings, tally)), tally


def settings(**fields):
    return choose("a set", **{"source": "frames", "policy": "exhaustive", **fields})


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 90, 180, 270]),
    st.tuples(*[st.floats(0, 0.49)] * 4),
)  # fmt: skip
def test_frames_are_turned_then_cut_then_resized(height, width, rotation, margins):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    upright = {
        0: lambda: image,
        90: lambda: image.transpose(1, 0, 2)[:, ::-1],
        180: lambda: image[::-1, ::-1],
        270: lambda: image.transpose(1, 0, 2)[::-1],
    }[rotation]()
    rows, columns = upright.shape[:2]
    top, right, bottom, left = (round(m * n) for m, n in zip(margins, (rows, columns, rows, columns), strict=True))
    top, left = min(top, rows - 1), min(left, columns - 1)
    cut = upright[top : max(top + 1, rows - bottom), left : max(left + 1, columns - right)]
    prepared = prepare(image, Settings("x", image_size=32, margins=margins), rotation)
    expected = cv2.resize(np.ascontiguousarray(cut), (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(prepared, expected)


def test_the_published_margin_cuts_captions_away():
    image = np.zeros((100, 50, 3), np.uint8)
    image[80:] = 255
    assert prepare(image, choose("x", "mannequin")).max() == 0
    image[79] = 255
    assert prepare(image, choose("x", "mannequin")).max() > 0


def test_pairs_carry_what_is_known_of_them():
    images = views(3, 60)
    pairs, tally = mine(frames(images), settings(image_size=128, patch_size=16, quality=40))
    assert [(pair.frame1, pair.frame2) for pair in pairs] == [(0, 10), (10, 20)]
    assert (tally.frames_read, tally.pairs_tried, tally.pairs_kept) == (3, 3, 2)
    for pair in pairs:
        first, second = (cv2.resize(images[n // 10], (128, 128)) for n in (pair.frame1, pair.frame2))
        assert pair.view1 == records.encode_image(first, 40)
        assert pair.view2 == records.encode_image(second, 40)
        np.testing.assert_allclose(pair.homography, [[1, 0, -48], [0, 1, 0], [0, 0, 1]], atol=1.5)
        assert pair.overlap == np.mean(pair.correspondence >= 0)
        assert (pair.source, pair.scene) == ("a set", "a scene")


def test_the_band_is_inclusive_and_zero_to_one_keeps_every_homography():
    shown = frames(views(9, 24))
    every, tally = mine(shown, settings(min_overlap=0.0, max_overlap=1.0))
    assert tally.pairs_tried == 9 * 8 // 2
    assert set(tally.rejected) <= {"too few matches", "no homography"}
    assert len(every) + tally.rejected.total() == 36
    value = every[0].overlap
    exact, tally = mine(shown, settings(min_overlap=value, max_overlap=value))
    assert [pair.overlap for pair in exact] == [value] * len(exact)
    assert every[0].frame1 in {pair.frame1 for pair in exact}
    lower = sum(pair.overlap < value for pair in every)
    assert tally.rejected["overlap below band"] == lower
    images = views(9, 24)
    for pair in every[:3]:
        direct = matching.match(images[pair.frame1 // 10], images[pair.frame2 // 10], matcher="robust")
        assert direct.overlap == pair.overlap
        np.testing.assert_array_equal(direct.correspondence, pair.correspondence)


def test_pairs_inside_the_band_that_the_policy_leaves_are_counted():
    pairs, tally = mine(frames(views(5, 30)), settings(policy="best"))
    every, all_tally = mine(frames(views(5, 30)), settings())
    assert len(pairs) == 1
    assert pairs[0].overlap == min(pair.overlap for pair in every)
    assert tally.rejected["not chosen by the policy"] == len(every) - 1 > 0
    assert tally.pairs_tried == all_tally.pairs_tried == tally.pairs_kept + tally.rejected.total()


def test_a_long_video_streams():
    strip = texture(3, width=160 + 40 * 200)
    shown, most = [], 0

    def samples():
        for tick in range(200):
            image = strip[:, 40 * tick : 40 * tick + 160].copy()
            shown.append(weakref.ref(image))
            yield Sample(tick, tick, image)

    for _ in mine_scene(Scene("x", 1, samples), settings(policy="step", step=1), Tally()):
        most = max(most, sum(image() is not None for image in shown))
    assert 0 < most <= 3


def broken_disk():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def broken_scene():
    raise SceneProblem("ends early")


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (broken_disk, f"cannot be read ({os.strerror(errno.EIO)})"),
        (broken_scene, "ends early"),
        (lambda: np.zeros((0, 0, 3), np.uint8), "frame without pixels"),
        (lambda: None, "frame cannot be read"),
    ],
)
def test_a_failing_disk_or_picture_is_a_problem_of_its_scene(last, problem):
    def samples():
        for tick, image in enumerate(views(3, 60)):
            yield Sample(tick, tick, image)
        yield Sample(3, 3, last())

    pairs, tally = mine(Scene("x", 1, samples), settings())
    assert len(pairs) == 2
    assert tally.problems == {problem: 1}


def jpeg(image, quality=90):
    return records.encode_image(image, quality)


def ready(**fields):
    first, second = (cv2.resize(view, (224, 224)) for view in views(2, 60))
    return ReadyPair(**{"view1": jpeg(first), "view2": jpeg(second), **fields})


def test_ready_pairs_are_taken_as_they_are():
    correspondence = np.full(196, -1, np.int16)
    correspondence[:49] = np.arange(49)
    known, unknown = ready(correspondence=correspondence, frame1=3, frame2=4), ready()
    shown = scene([known, ReadyPair(b"", b"", problem="image cannot be decoded"), unknown], source="released")
    pairs, tally = mine(shown, choose("a set", source="mimic_release"))
    assert [(pair.view1, pair.view2, pair.source) for pair in pairs] == [(known.view1, known.view2, "released")] * 2
    np.testing.assert_array_equal(pairs[0].correspondence, correspondence)
    assert (pairs[0].overlap, pairs[0].frame1, pairs[0].frame2) == (0.25, 3, 4)
    assert (pairs[1].correspondence == -1).all()
    assert np.isnan(pairs[1].overlap)
    assert all(np.isnan(pair.homography).all() and pair.inliers == -1 for pair in pairs)
    assert tally.problems == {"image cannot be decoded": 1}
    assert (tally.frames_read, tally.pairs_tried, tally.pairs_kept) == (4, 2, 2)
    again = records.decode(records.encode(pairs[1]))
    assert np.isnan(again.overlap)
    assert np.isnan(again.homography).all()


def test_ready_pairs_can_be_tested_like_any_other():
    same = ready(view2=ready().view1)
    pairs, tally = mine(scene([ready(), same]), choose("a set", source="croco_listing", policy="tested"))
    assert tally.rejected == {"overlap above band": 1}
    assert pairs[0].view1 == ready().view1
    np.testing.assert_allclose(pairs[0].homography, [[1, 0, -84], [0, 1, 0], [0, 0, 1]], atol=1.5)
    # Views of another size are resized, and so encoded anew.
    (pair,), _ = mine(scene([ready()]), choose("a set", source="croco_listing", policy="tested", image_size=128))
    assert records.decode_image(pair.view1).shape == (128, 128, 3)


def good():
    for tick, image in enumerate(views(3, 60)):
        yield Sample(tick, tick, image)


def killer():
    yield next(good())
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("engine", ["local", "beam"])
def test_a_scene_that_kills_its_process_is_counted_and_the_others_are_mined(tmp_path, engine):
    chosen = settings(step=1)
    scenes = [Scene("a", 3, good), Scene("b", 2, killer), Scene("c", 1, good)]
    with dataset.opened(tmp_path, chosen.values()):
        dataset.begin_parts(tmp_path, chosen.values())
        if engine == "beam":
            workers.on_beam(functools.partial(mine_apart, output=tmp_path, settings=chosen), scenes, "", tmp_path)
        else:
            for each in scenes:
                mine_apart(each, tmp_path, chosen)
        entries = dataset.finished(tmp_path)
    assert entries["b"]["problems"] == {"reading it crashes the process": 1}
    assert [entries[name]["pairs_kept"] for name in "abc"] == [2, 0, 2]


def test_what_is_not_named_is_chosen_by_the_source():
    assert (choose("x").source, choose("x").policy, choose("x").step) == ("video", "adaptive", 1)
    assert (choose("x", source="frames").policy, choose("x", source="frames").step) == ("adaptive", 10)
    assert choose("x", source="frames", policy="exhaustive").step == 1
    assert choose("x", source="photos").policy == "exhaustive"
    assert choose("x", source="croco_listing").policy == "ready"
    co3d = choose("x", "co3d", step=7.0)
    assert (co3d.policy, co3d.folder, co3d.step) == ("disjoint", "images", 7.0)
    with pytest.raises(InputError, match="--preset=imagenet"):
        choose("x", "imagenet")
