"""Frames in the right order, at the right time, in the right colours; what cannot be read is said, not raised."""

import os
import random

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.settings import choose
from data_prep.sources import MODULES, frames, scenes, video
from data_prep.sources.scene import SceneProblem, natural_key
from mimic_jax.command import InputError


def write_video(path, images, rate=10.0, codec="MJPG"):
    """Writes BGR images; frame content survives the codec to within a few grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(image)
    writer.release()
    return path


def listed(source, input, policy="step", **given):
    """The scenes of an input."""
    policy = policy if source in ("video", "frames") else None
    return scenes(input, choose("x", source=source, policy=policy, **given))


def grey(level, size=(48, 64)):
    return np.full((*size, 3), level, np.uint8)


@given(st.lists(st.integers(0, 10**6), unique=True), st.randoms(use_true_random=False))
def test_natural_order_is_the_order_of_the_numbers(numbers, shuffle):
    names = [f"frame{number}.png" for number in sorted(numbers)]
    shuffled = names.copy()
    shuffle.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == names


def test_natural_order_of_mixed_names():
    names = ["", "1", "01", "2a10", "2a9", "a", "a1b2", "a1b10", "a2", "10"]
    expected = ["", "01", "1", "2a9", "2a10", "10", "a", "a1b2", "a1b10", "a2"]
    for seed in range(5):
        random.Random(seed).shuffle(names)
        assert sorted(names, key=natural_key) == expected


@pytest.mark.parametrize(
    ("rate", "codec", "suffix", "step", "numbers"),
    [
        (10.0, "MJPG", ".avi", 1.0, [0, 10, 20]),
        (10.0, "MJPG", ".avi", 0.5, [0, 5, 10, 15, 20, 25]),
        (10.0, "mp4v", ".mp4", 0.1, list(range(30))),
        (29.97, "mp4v", ".mp4", 0.5, [0, 15]),
        (10.0, "mp4v", ".mkv", 0.25, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]),
        (10.0, "MJPG", ".avi", 0.01, list(range(30))),
        (10.0, "MJPG", ".avi", 60.0, [0]),
    ],
)
def test_video_frames_at_each_step(tmp_path, rate, codec, suffix, step, numbers):
    path = write_video(tmp_path / f"video{suffix}", [grey(8 * number) for number in range(30)], rate, codec)
    samples = list(video.read(path, step))
    assert [sample.number for sample in samples] == numbers
    for sample in samples:
        assert abs(sample.image.mean() - 8 * sample.number) < 4
    assert [sample.tick for sample in samples] == list(range(len(numbers)))


def test_video_is_rgb(tmp_path):
    blue = np.zeros((48, 64, 3), np.uint8)
    blue[..., 0] = 255
    image = next(video.read(write_video(tmp_path / "blue.avi", [blue] * 3))).image
    assert image[..., 2].min() > 200
    assert image[..., 0].max() < 50


def test_videos_stream(tmp_path):
    path = write_video(tmp_path / "video.avi", [grey(100)] * 50)
    samples = video.read(path, 0.1)
    next(samples)
    samples.close()


def test_video_scenes(tmp_path):
    for name in ("b/v10.avi", "b/v9.AVI", "a.mp4", ".hidden.avi", "notes.txt", "b/._v9.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert [scene.name for scene in listed("video", tmp_path, step=1.0)] == ["a", "b/v9", "b/v10"]
    assert [scene.name for scene in listed("video", tmp_path / "a.mp4", step=1.0)] == ["a"]
    assert listed("video", tmp_path, step=1.0)[0].input_size == 3
    (tmp_path / "a.mov").touch()
    with pytest.raises(InputError, match=r"would both be scene 'a'"):
        listed("video", tmp_path, step=1.0)


def test_a_link_to_nothing_is_a_scene_that_cannot_be_read(tmp_path):
    write_video(tmp_path / "b.avi", [grey(100)] * 3)
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "c.mp4").symlink_to(tmp_path / "c.mp4")
    link, good, loop = listed("video", tmp_path, step=1.0)
    assert (link.name, link.input_size) == ("a", -1)
    assert (loop.name, loop.input_size) == ("c", -1)
    assert len(list(good.samples())) == 1
    for scene in (link, loop):
        with pytest.raises(SceneProblem, match="cannot be read"):
            list(scene.samples())


@pytest.mark.parametrize(("source", "name"), [("video", "locked/"), ("frames", "locked")])
def test_an_unreadable_folder_is_a_scene_that_cannot_be_read(tmp_path, source, name):
    write_video(tmp_path / "a" / "a.avi", [grey(100)] * 3)
    write_image(tmp_path / "a" / "0.png")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0)
    try:
        if os.access(tmp_path / "locked", os.R_OK):
            pytest.skip("permissions do not bind this user: root?")
        _, scene = listed(source, tmp_path)
        with pytest.raises(InputError, match="locked: cannot be read"):
            listed(source, tmp_path / "locked")
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert (scene.name, scene.input_size) == (name, -1)
    with pytest.raises(SceneProblem, match="folder cannot be read"):
        list(scene.samples())


def test_unreadable_and_truncated_videos(tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"not a video" * 1000)
    with pytest.raises(SceneProblem, match="cannot be read"):
        list(video.read(tmp_path / "junk.mp4"))
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3)).astype(np.uint8)
    whole = write_video(tmp_path / "whole.avi", list(noise)).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) * 4 // 5])
    with pytest.raises(SceneProblem, match="ends before its header says"):
        list(video.read(cut, 0.1))
    cut.write_bytes(whole[: len(whole) // 2])
    seen, samples = [], video.read(cut, 0.1)
    with pytest.raises(SceneProblem, match="ends before its header says"):
        seen.extend(sample.number for sample in samples)
    assert seen == list(range(len(seen)))
    assert 5 < len(seen) < 20


def write_image(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), grey(level))


def test_frames_in_natural_order_with_their_numbers(tmp_path):
    for number in (9, 10, 100, 2):
        write_image(tmp_path / f"frame{number}.png", number)
    (scene,) = listed("frames", tmp_path, step=1.0)
    assert scene.name == tmp_path.name
    assert scene.input_size == 4
    samples = list(scene.samples())
    assert [sample.number for sample in samples] == [2, 9, 10, 100]
    assert [sample.image[0, 0, 0] for sample in samples] == [2, 9, 10, 100]
    assert [sample.tick for sample in samples] == [0, 1, 2, 3]
    (scene,) = listed("frames", tmp_path, step=3.0)
    assert [sample.number for sample in scene.samples()] == [2, 100]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("a.png", "b.png"), [0, 1]),
        (("s1_000.png", "s1_020.png"), [0, 20]),
        (("1.left.png", "1.right.png"), [0, 1]),
        (("1305031102175304.png", "1305031102211214.png"), [0, 1]),
        (("5.png", "x.png"), [0, 1]),
    ],
)
def test_frame_numbers(names, numbers):
    assert frames.frame_numbers(names) == numbers


def test_only_folders_of_one_name_are_read_where_one_is_given(tmp_path):
    for name in ("apple/110_1/images/frame000001.jpg", "apple/110_1/masks/frame000001.png", "ball/2/images/7.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "ball" / "3" / "images").mkdir(parents=True)
    found = listed("frames", tmp_path, step=1.0, folder="images")
    assert [scene.name for scene in found] == ["apple/110_1", "ball/2", "ball/3"]
    assert [[sample.number for sample in scene.samples()] for scene in found] == [[1], [7], []]
    (scene,) = listed("frames", tmp_path / "ball" / "2" / "images", step=1.0, folder="images")
    assert scene.name == "2"
    write_image(tmp_path / tmp_path.name / "images" / "1.jpg")
    write_image(tmp_path / "images" / "1.jpg")
    with pytest.raises(InputError, match="would both be scene"):
        listed("frames", tmp_path, step=1.0, folder="images")
    with pytest.raises(InputError, match="no folder 'color' with images in it"):
        listed("frames", tmp_path, step=1.0, folder="color")


def test_short_folders_are_left_out(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"{number}.png")
    (scene,) = listed("frames", tmp_path, step=1.0, min_length=5)
    with pytest.raises(SceneProblem, match="shorter than 5 images"):
        list(scene.samples())
    (scene,) = listed("frames", tmp_path, step=1.0, min_length=4)
    assert len(list(scene.samples())) == 4


def test_frames_that_the_policy_does_not_look_at_are_not_read(tmp_path):
    for number in range(70):
        (tmp_path / f"{number}.png").touch()
    (scene,) = listed("frames", tmp_path, policy="blocks", step=1.0)
    assert [sample.tick for sample in scene.samples()] == [*range(10), *range(50, 70)]


def test_frame_scenes(tmp_path):
    write_image(tmp_path / "s10" / "0.png")
    write_image(tmp_path / "s9" / "rgb" / "0.png")
    (tmp_path / "empty").mkdir()
    scenes = listed("frames", tmp_path, step=1.0)
    assert [scene.name for scene in scenes] == ["empty", "s9/rgb", "s10"]
    assert list(scenes[0].samples()) == []
    # A picture beside the folders takes nothing from them.
    write_image(tmp_path / "0.png")
    assert {scene.name for scene in listed("frames", tmp_path, step=1.0)} == {tmp_path.name, "empty", "s9/rgb", "s10"}


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_frame_steps_are_whole(tmp_path, step):
    write_image(tmp_path / "0.png")
    with pytest.raises(InputError, match="whole number"):
        listed("frames", tmp_path, step=step)


@pytest.mark.parametrize("source", MODULES)
def test_nothing_to_read(tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no .* in it|no pairs"):
        listed(source, tmp_path)
