"""The film command: what it writes is true, repeatable and restartable, and mistakes are answered in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import trimesh

from data_prep.worlds import filming, glb, paths, raycast, truth
from data_prep.worlds.filming import Settings
from tests import commands

FRAMES, SIZE = 24, 64


def film(*arguments):
    return commands.run(["data_prep.film", *arguments])


def small(output, **more):
    flags = {"scenes": 2, "frames": FRAMES, "size": SIZE, "seed": 3} | more
    return [f"--output={output}", *(f"--{name}={value}" for name, value in flags.items())]


def decoded(path):
    reader = cv2.VideoCapture(str(path))
    frames = []
    while (read := reader.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.array(frames)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two small scenes, filmed by one process."""
    folder = tmp_path_factory.mktemp("films")
    done = film(*small(folder, workers=1))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def true_film(tmp_path_factory):
    """One scene at the size of the real thing, a few frames, with its ground truth."""
    folder = tmp_path_factory.mktemp("truth")
    video = filming.film_scene(folder, 0, Settings(frames=16, size=224, seed=1, ground_truth=True))
    return video, np.load(video.with_suffix(".npz"))


def psnr(one, two):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - two.astype(float)) ** 2))


def test_depth_and_poses_agree_with_the_pictures(true_film):
    """View 2, looked up where depth and poses say that view 1's pixels are, looks like view 1."""
    video, record = true_film
    world = glb.read_world(video.with_suffix(".glb"))
    poses, intrinsics, depth = record["camera_to_world"], record["intrinsics"], record["depth"]
    rendered = {n: raycast.render(world, poses[n], intrinsics, 224).image for n in (0, 8, 15)}
    shown = decoded(video)
    for name, images in (("rendered", rendered), ("decoded", shown)):
        for one, two in ((0, 8), (8, 15), (0, 15)):
            position, seen = truth.warp_pixels(depth[one], poses[one], depth[two], poses[two], intrinsics, 0.02)
            x, y = np.nan_to_num(position, nan=-1).astype(np.float32).transpose(2, 0, 1)
            grey1, grey2 = (cv2.cvtColor(np.ascontiguousarray(images[n]), cv2.COLOR_RGB2GRAY) for n in (one, two))
            warped = cv2.remap(grey2, x, y, cv2.INTER_LINEAR)
            error = np.abs(warped[seen].astype(float) - grey1[seen])
            still = np.abs(grey2[seen].astype(float) - grey1[seen])
            with_warp, without = psnr(warped[seen], grey1[seen]), psnr(grey2[seen], grey1[seen])
            print(
                f"{name} frames {one} and {two}: {seen.mean():.0%} seen in both; grey levels off, median (mean): "
                f"warped {np.median(error):.1f} ({error.mean():.1f}), not {np.median(still):.1f} ({still.mean():.1f}); "
                f"PSNR {with_warp:.1f} dB, not warped {without:.1f} dB"
            )
            assert seen.mean() > 0.3
            assert np.median(error) < (6 if name == "rendered" else 10)
            assert with_warp > without + (6 if name == "rendered" else 4)
            assert with_warp > 26


def test_a_wrong_pose_would_be_noticed(true_film):
    """Two centimetres or one degree off spoil the agreement: the test above can fail."""
    video, record = true_film
    world = glb.read_world(video.with_suffix(".glb"))
    poses, intrinsics, depth = record["camera_to_world"], record["intrinsics"], record["depth"]
    images = {n: raycast.render(world, poses[n], intrinsics, 224).image.mean(2) for n in (0, 8)}

    def agreement(pose2):
        position, seen = truth.warp_pixels(depth[0], poses[0], depth[8], pose2, intrinsics, 0.1)
        x, y = np.nan_to_num(position, nan=-1).astype(np.float32).transpose(2, 0, 1)
        return psnr(cv2.remap(images[8], x, y, cv2.INTER_LINEAR)[seen], images[0][seen])

    shifted = poses[8].copy()
    shifted[:3, 3] += 0.03 * shifted[:3, 0]
    turned = poses[8].copy()
    turned[:3, :3] = turned[:3, :3] @ cv2.Rodrigues(np.radians([0, 1.0, 0]))[0]
    best = agreement(poses[8])
    assert best > agreement(shifted) + 2
    assert best > agreement(turned) + 2


def test_what_is_stored(true_film):
    video, record = true_film
    assert record["camera_to_world"].shape == (16, 4, 4)
    assert record["camera_to_world"].dtype == record["intrinsics"].dtype == np.float64
    assert record["fps"] == 20
    assert record["depth"].shape == record["instance"].shape == (16, 224, 224)
    assert (record["depth"].dtype, record["normal"].dtype, record["instance"].dtype) == ("float32", "float16", "uint16")
    np.testing.assert_allclose(np.linalg.norm(record["normal"].astype(float), axis=3), 1, atol=2e-3)
    # 60° from edge to edge, the middle of the first pixel at 0.
    edges = (np.array([-0.5, 223.5]) - record["intrinsics"][0, 2]) / record["intrinsics"][0, 0]
    np.testing.assert_allclose(np.degrees(np.arctan(edges)), [-30, 30])
    names = glb.read_world(video.with_suffix(".glb")).names
    assert record["instance"].max() <= len(names)
    assert len(np.unique(record["instance"])) > 8


def test_instance_ids_stay_with_their_objects(true_film):
    _, record = true_film
    poses, depth, instance = record["camera_to_world"], record["depth"], record["instance"]
    position, seen = truth.warp_pixels(depth[0], poses[0], depth[15], poses[15], record["intrinsics"], 0.005)
    column, row = np.rint(position[seen]).astype(int).T
    # Pixels beside an outline round to the other side.
    assert (instance[15][row, column] == instance[0][seen]).mean() > 0.97


def test_video_has_every_frame_and_hundreds_of_keypoints(true_film):
    video, _ = true_film
    frames = decoded(video)
    assert frames.shape == (16, 224, 224, 3)
    counts = [len(cv2.SIFT_create().detect(cv2.cvtColor(f.copy(), cv2.COLOR_RGB2GRAY))) for f in frames]
    print(f"SIFT keypoints in decoded frames: least {min(counts)}, median {int(np.median(counts))}")
    assert min(counts) > 200


def test_same_films_whatever_the_number_of_workers(films, tmp_path):
    done = film(*small(tmp_path, workers=2))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(films)
    assert not (tmp_path / filming.DRAFTS).exists()


def test_other_scenes_and_seeds_are_other_films(films, tmp_path):
    filming.film_scene(tmp_path, 0, Settings(frames=FRAMES, size=SIZE, seed=4))
    first, second = (decoded(films / f"room_000{n}.mp4") for n in (0, 1))
    third = decoded(tmp_path / "room_0000.mp4")
    for one, two in ((first, second), (first, third), (second, third)):
        assert np.abs(one.astype(float) - two).mean() > 20


def test_killed_and_run_again_gives_the_same_bytes(films, tmp_path):
    command = [sys.executable, "-m", "data_prep.film", *small(tmp_path, workers=1)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "room_0000.npz").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)  # into the second scene
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "room_0001.npz").exists()
    first = os.stat(tmp_path / "room_0000.npz")
    done = film(*small(tmp_path, workers=1))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(films)
    assert os.stat(tmp_path / "room_0000.npz").st_mtime_ns == first.st_mtime_ns


def test_a_missing_or_damaged_file_is_made_again(films, tmp_path):
    settings = Settings(frames=FRAMES, size=SIZE, seed=3)
    for path in films.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "room_0000.mp4").unlink()
    (tmp_path / "room_0001.npz").write_bytes(b"PK\x03\x04 cut")
    assert not filming.is_filmed(tmp_path, 0, settings)
    assert not filming.is_filmed(tmp_path, 1, settings)
    filming.film_scene(tmp_path, 1, settings)
    assert contents(tmp_path).items() < contents(films).items()


def test_films_any_glb(tmp_path):
    """A closed room from elsewhere, with a box in it; its camera keeps inside, clear of everything."""
    scene = trimesh.Scene()
    walls = trimesh.creation.box((6, 3, 5))
    walls.apply_translation((10, 1.5, -7))
    box = trimesh.creation.box((1, 1, 1))
    box.apply_translation((9, 0.5, -7))
    box.visual.vertex_colors = [200, 60, 30, 255]
    scene.add_geometry(walls, node_name="walls")
    scene.add_geometry(box, node_name="box")
    source = tmp_path / "house.glb"
    source.write_bytes(scene.export(file_type="glb"))
    output = tmp_path / "films"
    done = film(*small(output, glb=source, ground_truth=True, scenes=2, frames=8))
    assert done.returncode == 0, done.stderr
    assert sorted(contents(output)) == [f"house_000{n}.{kind}" for n in (0, 1) for kind in ("mp4", "npz")]
    for n in (0, 1):
        record = np.load(output / f"house_000{n}.npz")
        eyes = record["camera_to_world"][:, :3, 3]
        assert (np.abs(eyes[:, 0] - 10) < 3 - paths.CLEARANCE).all()
        assert (np.abs(eyes[:, 2] + 7) < 2.5 - paths.CLEARANCE).all()
        assert (record["depth"] > 0).all()
        assert set(np.unique(record["instance"])) <= {1, 2}
    assert (decoded(output / "house_0000.mp4") != decoded(output / "house_0001.mp4")).any()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"scenes": 0}, "scenes"),
        ({"size": 65}, "even"),
        ({"fps": 0}, "fps"),
        ({"frames": "many"}, "frames"),
        ({"glb": "absent.glb"}, "absent.glb"),
        ({"glb": __file__}, "not a .glb"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path, flags, words):
    done = film(*small(tmp_path / "films", **flags))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(tmp_path.rglob("*.mp4"))


def test_output_that_is_a_file_and_a_glb_with_no_room_in_it(tmp_path):
    (tmp_path / "taken").touch()
    done = film(*small(tmp_path / "taken"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (tmp_path / "cube.glb").write_bytes(trimesh.Scene(trimesh.creation.box((1, 1, 1))).export(file_type="glb"))
    done = film(*small(tmp_path / "films", glb=tmp_path / "cube.glb"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cube.glb: no free place" in done.stderr


def test_other_settings_do_not_mix(films):
    before = contents(films)
    done = film(*small(films, frames=FRAMES + 1))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"frames={FRAMES}, not {FRAMES + 1}" in done.stderr
    assert "--output" in done.stderr
    assert contents(films) == before
    settings = json.loads(str(np.load(films / "room_0000.npz")["settings"]))
    assert settings["frames"] == FRAMES
