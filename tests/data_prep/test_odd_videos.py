"""Videos as phones and the web have them, and files that are no videos but say so."""

import itertools
import os
import struct
import sys
import threading

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import workers
from data_prep.settings import choose
from data_prep.sources import scenes, video
from data_prep.sources.scene import SceneProblem


def encode(path, codec, images, rate=10, **options):
    """Writes RGB images with PyAV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey(level, size=(64, 96)):
    return np.full((*size, 3), level, np.uint8)


def corners(size=(64, 96)):
    """Red top left, green top right, blue bottom left, black bottom right."""
    image = np.zeros((*size, 3), np.uint8)
    y, x = size[0] // 2, size[1] // 2
    image[:y, :x, 0] = image[:y, x:, 1] = image[y:, :x, 2] = 255
    return image


def colours(image):
    """What the four quarters show, row by row."""
    height, width = image.shape[:2]
    names = {(True, False, False): "red", (False, True, False): "green", (False, False, True): "blue"}
    return [names.get(tuple(image[height * y // 4, width * x // 4] > 128), "black") for y in (1, 3) for x in (1, 3)]


def rotate_tag(path, degrees):
    """Sets the display matrix of an .mp4's track header so that players turn it clockwise."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    data[header + 44 : header + 80] = matrix
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".mp4"), ("libx264", ".mov"), ("libx264", ".mkv"), ("libx264", ".ts"), ("libx264", ".flv"),
        ("hevc", ".mp4"), ("libvpx-vp9", ".webm"), ("libsvtav1", ".mp4"), ("libsvtav1", ".mkv"),
        ("mpeg2video", ".mpg"), ("mpeg4", ".avi"), ("mpeg4", ".3gp"), ("libtheora", ".ogv"), ("wmv2", ".wmv"),
    ],
)  # fmt: skip
def test_codecs_and_containers(tmp_path, codec, suffix):
    try:
        path = encode(tmp_path / f"a{suffix}", codec, [grey(10 * number) for number in range(25)], 25)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV cannot write {codec}: {error}")
    samples = list(video.read(path, 0.2))
    assert [sample.number for sample in samples] == [0, 5, 10, 15, 20]
    for sample in samples:
        assert abs(sample.image.mean() - 10 * sample.number) < 8


def test_av1_goes_through_pyav_alike(tmp_path):
    images = [corners() + np.uint8(number) for number in range(20)]
    av1, h264 = (encode(tmp_path / f"{codec}.mp4", codec, images) for codec in ("libsvtav1", "libx264"))
    opened = cv2.VideoCapture(str(av1))
    assert not opened.grab(), "OpenCV decodes AV1 by now: PyAV is no longer needed for it"
    for ours, theirs in zip(video.read(av1, 0.3), video.read(h264, 0.3), strict=True):
        assert (ours.number, ours.tick) == (theirs.number, theirs.tick)
        assert np.abs(ours.image.astype(int) - theirs.image).mean() < 6


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
@pytest.mark.parametrize(
    ("degrees", "shown"),
    [
        (90, ["blue", "red", "black", "green"]),
        (180, ["black", "blue", "green", "red"]),
        (270, ["green", "black", "red", "blue"]),
    ],
)
def test_rotation_tags_turn_frames_upright(tmp_path, codec, degrees, shown):
    path = encode(tmp_path / "a.mp4", codec, [corners()] * 5)
    assert colours(next(video.read(path)).image) == ["red", "green", "blue", "black"]
    rotate_tag(path, degrees)
    image = next(video.read(path)).image
    assert colours(image) == shown
    assert image.shape[:2] == ((64, 96) if degrees == 180 else (96, 64))
    assert colours(next(video.read(path, upright=False)).image) == ["red", "green", "blue", "black"]


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mpeg4"), (".ts", "libx264"), (".mkv", "libsvtav1")]
)
def test_short_videos_are_left_out(tmp_path, suffix, codec):
    path = encode(tmp_path / f"a{suffix}", codec, [grey(100)] * 25, 10)
    assert len(list(video.read(path, 1.0, min_length=2.4))) == 3
    with pytest.raises(SceneProblem, match="shorter than 3 s"):
        list(video.read(path, 1.0, min_length=3))


def test_ticks_inside_a_step(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264", [grey(100)] * 60, 30)
    samples = list(video.read(path, 1.0, ticks=10))
    assert [(sample.number, sample.tick) for sample in samples] == [(3 * tick, tick) for tick in range(20)]
    # Finer than the frames are: each has the tick it is nearest to.
    assert [sample.tick for sample in video.read(path, 0.1, ticks=10)][:7] == [0, 3, 7, 10, 13, 17, 20]
    # A step shorter than a frame is a frame.
    assert [sample.tick for sample in video.read(path, 0.001)] == list(range(60))


def test_a_playlist_is_no_video(tmp_path):
    secret = encode(tmp_path / "secret.ts", "libx264", [grey(200)] * 20)
    playlist = tmp_path / "a.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(SceneProblem, match="cannot be read"):
        list(video.read(playlist))
    concat = tmp_path / "b.mp4"
    concat.write_text(f"ffconcat version 1.0\nfile {secret}\n")
    with pytest.raises(SceneProblem, match="cannot be read"):
        list(video.read(concat))
    assert len(list(video.read(secret))) == 2


def test_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    done = threading.Event()

    def read():
        for scene in scenes(tmp_path, choose("x")):
            with pytest.raises(SceneProblem, match="cannot be read"):
                list(scene.samples())
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(10)


@pytest.mark.parametrize("name", ["with space.mp4", "中文 é.mp4", "-dash.mp4", "a'b\"c%20.mp4", "new\nline.mp4"])
def test_names(tmp_path, name):
    encode(tmp_path / "sub folder" / name, "libx264", [grey(100)] * 5)
    (scene,) = scenes(tmp_path, choose("x"))
    assert scene.name == f"sub folder/{name[:-4]}"
    assert len(list(scene.samples())) > 0


def test_a_name_that_is_no_utf8(tmp_path):
    encode(tmp_path / "a.mp4", "libx264", [grey(100)] * 5)
    os.rename(os.fsencode(tmp_path) + b"/a.mp4", os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    (scene,) = scenes(tmp_path, choose("x"))
    assert scene.name == "caf\\xe9"
    assert len(list(scene.samples())) > 0


def test_recordings_joined_end_to_end(tmp_path):
    one, two = (encode(tmp_path / f"{n}.ts", "libx264", [grey(20 * n + k) for k in range(60)], 10) for n in (1, 2))
    (tmp_path / "joined.ts").write_bytes(one.read_bytes() + two.read_bytes())
    samples = list(video.read(tmp_path / "joined.ts", 1.0))
    numbers, ticks = [sample.number for sample in samples], [sample.tick for sample in samples]
    # All of both is seen, and the last of one and the first of the other are no neighbours.
    assert len(numbers) in (12, 13)
    assert numbers[-1] > 100
    first = next(i for i, number in enumerate(numbers) if number >= 60)
    assert ticks[first] > ticks[first - 1] + 1
    assert all(later > tick for tick, later in itertools.pairwise(ticks))


def test_without_pyav_the_reason_says_so(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", "libsvtav1", [grey(100)] * 5)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SceneProblem, match=r"PyAV may \(pip install av\)"):
        list(video.read(path))


class Videos(dict):
    """Small videos as bytes, by suffix."""

    def __repr__(self):
        return "Videos"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workers.quiet_opencv()
    folder = tmp_path_factory.mktemp("whole")
    noise = [np.random.default_rng(n).integers(0, 256, (48, 64, 3)).astype(np.uint8) for n in range(8)]
    kinds = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4", ".mkv": "libsvtav1", ".ts": "libx264"}
    return Videos({suffix: encode(folder / f"a{suffix}", codec, noise).read_bytes() for suffix, codec in kinds.items()})


def damage(data, draw):
    """Bytes overwritten, pieces cut out or said twice, an end missing."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "cut", "twice", "end", "number"]))
        if kind == "byte":
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            data[place : place + 4] = struct.pack(">I", draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 200))]
        elif kind == "twice":
            data[place:place] = data[place : place + draw(st.integers(1, 200))]
        else:
            del data[place:]
    return bytes(data)


def try_to_read(path):
    """Frames or a reason, nothing else."""
    try:
        for sample in video.read(path, 0.1):
            assert sample.image is None or sample.image.dtype == np.uint8
    except SceneProblem:
        pass


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_damaged_videos_never_crash(tmp_path, whole, data):
    suffix = data.draw(st.sampled_from(sorted(whole)))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damage(whole[suffix], data.draw))
    try_to_read(path)


@pytest.mark.slow
@settings(max_examples=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_damaged_videos_never_crash_at_length(tmp_path, whole, data):
    suffix = data.draw(st.sampled_from(sorted(whole)))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damage(whole[suffix], data.draw))
    try_to_read(path)
