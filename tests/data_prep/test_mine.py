"""The command, end to end: what is stored, what is counted, and that nothing is lost when it is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep import overlap
from data_prep.mine import mine
from data_prep.settings import Settings
from mimic_jax import records
from mimic_jax.command import InputError
from tests import commands

ROOT = Path(__file__).resolve().parents[2]
RATE = 5


def texture(seed, height=120, width=1400):
    """A BGR strip, red above all, with corners and blobs at every scale."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (20, 40, 200), np.uint8)
    for _ in range(width):
        centre, radius = (int(rng.integers(width)), int(rng.integers(height))), int(rng.integers(2, 14))
        colour = (int(rng.integers(40)), int(rng.integers(120)), int(rng.integers(60, 256)))
        cv2.circle(image, centre, radius, colour, -1, cv2.LINE_AA)
    return image


def pan(seed, frames, shift):
    """Frames 160×120 of a camera that moves over a texture by `shift` pixels a frame."""
    strip = texture(seed, width=160 + shift * frames)
    return [np.ascontiguousarray(strip[:, shift * i : shift * i + 160]) for i in range(frames)]


def write_video(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, images[0].shape[1::-1])
    for image in images:
        writer.write(image)
    writer.release()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Ten videos of different length; one second moves the view by 3/8, so that overlap is about 62 %."""
    folder = tmp_path_factory.mktemp("input") / "videos"
    for scene in range(10):
        write_video(folder / f"room{scene}.avi", pan(scene, RATE * (9 + 3 * scene), 12))
    return folder


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep.mine", "--policy=step", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


def contents(folder):
    """Every file below a folder, by name, as bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def mined(videos, tmp_path_factory):
    output = tmp_path_factory.mktemp("mined") / "pairs"
    out, err = finish(command(f"--input={videos}", f"--output={output}", "--workers=2", "--shards=3"))
    assert err == ""
    assert "pairs kept" in out
    return output


def test_the_dataset_opens_and_holds_the_right_pairs(mined, videos):
    source = tfds.builder_from_directory(mined).as_data_source("train")
    opened = records.open_dataset(mined)
    assert len(opened.shards) == 3
    assert len(source) == len(opened) > 150
    assert {path.name for path in mined.iterdir()} == {
        "features.json", "dataset_info.json", "digests.json", "manifest.json", *(shard.name for shard in opened.shards)
    }  # fmt: skip
    order = [(pair["scene"].decode(), int(pair["frame1"])) for pair in source]
    assert order == sorted(order)
    for index in (0, len(source) // 2, len(source) - 1):
        pair = source[index]
        scene, first, second = pair["scene"].decode(), int(pair["frame1"]), int(pair["frame2"])
        assert second == first + RATE
        assert pair["source"] == b"videos"
        images = pan(int(scene[4:]), RATE * (9 + 3 * int(scene[4:])), 12)
        for view, number in (("view1", first), ("view2", second)):
            expected = cv2.cvtColor(cv2.resize(images[number], (224, 224)), cv2.COLOR_BGR2RGB)
            # Two JPEG codecs in between; swapped channels would be off by a hundred.
            assert np.abs(pair[view].astype(int) - expected).mean() < 10
        # The view moves by 60 of 160 pixels: 84 of 224.
        np.testing.assert_allclose(pair["homography"], [[1, 0, -84], [0, 1, 0], [0, 0, 1]], atol=1.5)
        assert pair["overlap"] == pytest.approx(np.mean(pair["correspondence"] >= 0))
        assert 0.5 <= pair["overlap"] <= 0.75
        expected = overlap.correspondences(np.array([[1.0, 0, -84], [0, 1, 0], [0, 0, 1]]))
        assert np.mean(pair["correspondence"] == expected) > 0.6
        assert pair["inliers"] > 20


def test_the_manifest_accounts_for_every_pair(mined):
    manifest = json.loads((mined / "manifest.json").read_text())
    assert list(manifest["scenes"]) == [f"room{scene}" for scene in range(10)]
    for scene, entry in enumerate(manifest["scenes"].values()):
        assert entry["frames_read"] == 9 + 3 * scene
        assert entry["pairs_tried"] == entry["frames_read"] - 1
        assert entry["pairs_tried"] == entry["pairs_kept"] + sum(entry["rejected"].values())
        assert entry["problems"] == {}
    assert manifest["totals"]["pairs_kept"] == len(records.open_dataset(mined))
    assert manifest["settings"]["name"] == "videos"
    assert manifest["versions"]["opencv"] == cv2.__version__


def test_workers_change_nothing(mined, videos, tmp_path):
    finish(command(f"--input={videos}", f"--output={tmp_path / 'one'}", "--workers=1", "--shards=3"))
    assert contents(tmp_path / "one") == contents(mined)


@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_beam_writes_the_same_bytes(mined, videos, tmp_path, mode):
    options = f"--beam_options=--runner=DirectRunner --direct_num_workers=2 --direct_running_mode={mode}"
    places = f"--input={videos}", f"--output={tmp_path / 'pairs'}", "--shards=3"
    finish(command(*places, "--engine=beam", options))
    assert contents(tmp_path / "pairs") == contents(mined)


def test_a_full_disk_stops_it_in_one_line_and_it_carries_on(mined, videos, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be made here: mount needs root")
    try:
        # Room for some parts at first; then for all parts, not for the dataset besides; then for both.
        arguments = (f"--input={videos}", f"--output={disk / 'pairs'}", "--workers=2", "--shards=3")
        for size in (3, 9):
            subprocess.run(["mount", "-o", f"remount,size={size}m", disk], check=True)
            _, err = finish(command(*arguments), 2)
            assert "no room left on this disk" in err.splitlines()[-1], size
            assert len(err.splitlines()) == 1
            assert "Traceback" not in err
        parts = {path.name: path.stat().st_mtime_ns for path in (disk / "pairs" / ".parts").glob("*.part")}
        assert len(parts) == 10
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        finish(command(*arguments))
        assert contents(disk / "pairs") == contents(mined)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_finished_dataset_is_left_alone_and_grows_with_its_input(mined, videos, tmp_path):
    few, output = tmp_path / "videos", tmp_path / "pairs"
    few.mkdir()
    for scene in (1, 4, 9):
        shutil.copy(videos / f"room{scene}.avi", few)
    finish(command(f"--input={few}", f"--output={output}"))
    before = contents(output)
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    start = time.monotonic()
    _, err = finish(command(f"--input={few}", f"--output={output}"))
    assert "already done" in err
    assert time.monotonic() - start < 5
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == times
    assert contents(output) == before
    # A scene that is there is not read again: were it, junk of the same size would cost it its pairs.
    (few / "room4.avi").write_bytes(bytes((few / "room4.avi").stat().st_size))
    for scene in (0, 2, 3, 5, 6, 7, 8):
        shutil.copy(videos / f"room{scene}.avi", few)
    finish(command(f"--input={few}", f"--output={output}", "--shards=3"))
    assert contents(output) == contents(mined)
    # A scene whose file has changed is mined anew; one that is gone stays.
    (few / "room4.avi").write_bytes(b"junk")
    (few / "room9.avi").unlink()
    _, err = finish(command(f"--input={few}", f"--output={output}", "--shards=3"))
    assert "room4: cannot be read" in err
    scenes = json.loads((output / "manifest.json").read_text())["scenes"]
    assert scenes["room4"]["problems"] == {"cannot be read": 1}
    assert scenes["room9"]["pairs_kept"] > 0
    assert len(records.open_dataset(output)) == sum(entry["pairs_kept"] for entry in scenes.values())


def children(process):
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def workers(process):
    """Process ids of mining workers: the resource tracker is a child too."""
    found = []
    for pid in children(process):
        try:
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except FileNotFoundError:
            pass
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("victim", ["command", "worker"])
def test_kill_at_random_moments_loses_nothing(mined, videos, tmp_path, victim):
    output = tmp_path / "pairs"
    arguments = (f"--input={videos}", f"--output={output}", "--workers=2", "--shards=3")
    moments = random.Random(victim)
    kills = 0
    for attempt in range(4):
        process = command(*arguments)
        # Every attempt lives longer than the last, so that some die early, some between scenes, some at the end.
        deadline = time.monotonic() + 0.6 + 0.35 * attempt + moments.uniform(0, 0.4)
        while time.monotonic() < deadline or (victim == "worker" and not workers(process)):
            if process.poll() is not None:
                break
            time.sleep(0.01)
        parts = {path.name: path.read_bytes() for path in output.glob(".parts/*.part")}
        mates = workers(process)
        if process.poll() is None:
            os.kill(process.pid if victim == "command" else mates[0], signal.SIGKILL)
        _, err = process.communicate(timeout=30)
        kills += process.returncode != 0
        if victim == "worker":
            # What it was at is done again by another; the run goes on.
            assert process.returncode == 0, err
        # No worker outlives its command, and no scene that was there is gone.
        limit = time.monotonic() + 5
        while any(map(alive, mates)) and time.monotonic() < limit:
            time.sleep(0.02)
        assert not any(map(alive, mates))
        if (output / "dataset_info.json").exists():
            assert len(records.open_dataset(output)) == len(records.open_dataset(mined))
        elif not (output / ".ready").exists():
            assert parts.items() <= {path.name: path.read_bytes() for path in output.glob(".parts/*.part")}.items()
    assert victim == "worker" or kills >= 2
    finish(command(*arguments))
    assert contents(output) == contents(mined)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_sixty_kills_lose_nothing(mined, videos, tmp_path):
    """Of a worker, of the command, or of all its processes at once, wherever that falls; six datasets in all."""
    moments = random.Random(0)
    kills = 0
    while kills < 60:
        output = tmp_path / f"pairs{kills}"
        arguments = (f"--input={videos}", f"--output={output}", "--workers=2", "--shards=3")
        for _ in range(10):
            process = command(*arguments, start_new_session=True)
            # Start-up is half a second, and the whole five; the end is where most can go wrong.
            time.sleep(moments.choice([moments.uniform(0, 0.6), moments.uniform(0.5, 5)]))
            mates = workers(process)
            victim = moments.choice(["worker", "command", "all"])
            if process.poll() is None and victim == "all":
                os.killpg(process.pid, signal.SIGKILL)
            elif process.poll() is None:
                os.kill(mates[0] if victim == "worker" and mates else process.pid, signal.SIGKILL)
            kills += 1
            process.communicate(timeout=60)
        finish(command(*arguments))
        assert contents(output) == contents(mined)


def test_interrupt_is_one_line_and_carries_on(mined, videos, tmp_path):
    arguments = (f"--input={videos}", f"--output={tmp_path / 'pairs'}", "--workers=2", "--shards=3")
    # While the workers start, and while they work.
    for after in (0.05, 0.1, 0.15, 0.5):
        interrupt(arguments, after)
    finish(command(*arguments))
    assert contents(tmp_path / "pairs") == contents(mined)


def test_interrupt_stops_within_a_long_scene(videos, tmp_path):
    # 16 000 pairs: half a minute.
    long = (f"--input={videos / 'room9.avi'}", f"--output={tmp_path / 'pairs'}", "--step=0.2", "--policy=exhaustive")
    interrupt(long, 2)


def interrupt(arguments, after):
    """Ctrl-C, which reaches the command and its workers alike, so long after the first worker has begun."""
    process = command(*arguments, start_new_session=True)
    while not (mates := workers(process)):
        time.sleep(0.01)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{mates[0]}/status").read_text().splitlines())
    assert int(status["SigBlk"], 16) & 1 << (signal.SIGINT - 1)  # No traceback from a worker, at whatever moment.
    time.sleep(after)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process, 130)
    assert time.monotonic() - start < 3
    assert err.splitlines() == ["interrupted; the same command carries on from here"]
    assert not any(map(alive, mates))


def test_what_can_be_cured_is_tried_again(videos, tmp_path):
    folder, table = tmp_path / "in", tmp_path / "table.csv"
    folder.mkdir()
    for scene in (0, 1):
        shutil.copy(videos / f"room{scene}.avi", folder)
    (folder / "broken.avi").write_bytes(b"junk")
    table.write_text("scene,rotation\nroom0,0\n")
    arguments = f"--input={folder}", f"--output={tmp_path / 'out'}", f"--rotation={table}"
    finish(command(*arguments))
    before = contents(tmp_path / "out")
    assert json.loads(before["manifest.json"])["scenes"]["room1"]["problems"] == {"not in the table of rotations": 1}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    _, err = finish(command(*arguments))
    # Tried again in vain, and so nothing is written.
    assert "already done" in err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    table.write_text("scene,rotation\nroom0,0\nroom1,0\nbroken,0\n")
    finish(command(*arguments))
    scenes = json.loads((tmp_path / "out" / "manifest.json").read_text())["scenes"]
    assert scenes["room1"]["problems"] == {}
    assert scenes["room1"]["pairs_kept"] > 0
    assert scenes["broken"]["problems"] == {"cannot be read": 1}
    # Another turn is another scene.
    table.write_text("scene,rotation\nroom0,180\nroom1,0\nbroken,0\n")
    finish(command(*arguments))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["scenes"]["room0"]["rotation"] == 180


def test_an_output_inside_the_input_is_no_scene(tmp_path):
    for number, image in enumerate(pan(3, 5, 60)):
        cv2.imwrite(str(tmp_path / f"f{number}.jpg"), image)
    arguments = f"--input={tmp_path}", f"--output={tmp_path / 'pairs'}", "--source=frames", "--step=1"
    finish(command(*arguments))
    before = contents(tmp_path / "pairs")
    assert list(json.loads(before["manifest.json"])["scenes"]) == [tmp_path.name]
    _, err = finish(command(*arguments))
    assert "already done" in err
    assert contents(tmp_path / "pairs") == before


def test_beam_deals_shards_anew(videos, tmp_path):
    arguments = f"--input={videos / 'room9.avi'}", f"--output={tmp_path / 'out'}"
    finish(command(*arguments, "--shards=2"))
    finish(command(*arguments, "--shards=3", "--engine=beam"))
    assert len(records.open_dataset(tmp_path / "out").shards) == 3


def test_bad_videos_are_counted_and_the_others_mined(videos, tmp_path):
    folder = tmp_path / "in"
    (folder / "empty").mkdir(parents=True)
    shutil.copy(videos / "room0.avi", folder / "good.avi")
    (folder / "junk.mp4").write_bytes(b"not a video" * 1000)
    (folder / "nothing.mp4").touch()
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    write_video(folder / "single.avi", pan(0, 1, 12))
    whole = (videos / "room2.avi").read_bytes()
    (folder / "truncated.avi").write_bytes(whole[: len(whole) // 2])
    write_video(folder / "blank.avi", [np.zeros((120, 160, 3), np.uint8)] * 20)
    _, err = finish(command(f"--input={folder}", f"--output={tmp_path / 'out'}"))
    assert sorted(err.splitlines()) == [
        "warning: junk: cannot be read",
        "warning: link: cannot be read",
        "warning: nothing: cannot be read",
        "warning: single: only one frame",
        "warning: truncated: ends before its header says",
    ]
    scenes = json.loads((tmp_path / "out" / "manifest.json").read_text())["scenes"]
    assert scenes["good"]["pairs_kept"] > 5
    assert scenes["truncated"]["problems"] == {"ends before its header says": 1}
    assert 3 < scenes["truncated"]["pairs_kept"] < scenes["truncated"]["frames_read"] < 15
    assert scenes["blank"]["rejected"] == {"too few matches": 3}
    assert scenes["single"]["problems"] == {"only one frame": 1}


def test_frame_folders_with_a_corrupt_image(tmp_path):
    folder = tmp_path / "in"
    for scene in ("a", "b/c"):
        (folder / scene).mkdir(parents=True)
        for number, image in enumerate(pan(3, 12, 60)):
            cv2.imwrite(str(folder / scene / f"f{number}.jpg"), image)
    cut = (folder / "a" / "f5.jpg").read_bytes()
    (folder / "a" / "f5.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "empty").mkdir()
    places = f"--input={folder}", f"--output={tmp_path / 'out'}"
    _, err = finish(command(*places, "--source=frames", "--step=1", "--name=my set"))
    assert sorted(err.splitlines()) == ["warning: a: image cannot be decoded", "warning: empty: no frames"]
    source = tfds.builder_from_directory(tmp_path / "out").as_data_source("train")
    tried = [(int(pair["frame1"]), int(pair["frame2"])) for pair in source if pair["scene"] == b"a"]
    assert tried == [(i, i + 1) for i in range(11) if i not in (4, 5)]
    assert {pair["source"] for pair in source} == {b"my set"}
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["scenes"]["a"]
    assert entry["problems"] == {"image cannot be decoded": 1}


def test_no_pair_at_all(tmp_path):
    folder = tmp_path / "in"
    write_video(folder / "blank.avi", [np.zeros((120, 160, 3), np.uint8)] * 20)
    write_video(folder / "still.avi", pan(0, 1, 12) * 20)
    (folder / "junk.mp4").write_bytes(b"junk")
    for _ in range(2):
        _, err = finish(command(f"--input={folder}", f"--output={tmp_path / 'out'}"), 2)
        last = err.splitlines()[-1]
        assert last.startswith("error: no pair was kept")
        for count in ("3 × too few matches", "3 × overlap above band", "1 × cannot be read"):
            assert count in last
        assert json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]["pairs_tried"] == 6
    write_video(folder / "good.avi", pan(0, 40, 12))
    finish(command(f"--input={folder}", f"--output={tmp_path / 'out'}"))
    assert len(records.open_dataset(tmp_path / "out")) > 3


def test_image_and_patch_size_and_quality(videos, tmp_path):
    output = tmp_path / "out"
    settings = Settings("x", policy="step", image_size=112, patch_size=14, quality=50)
    mine(videos / "room0.avi", output, settings, processes=1)
    pair = tfds.builder_from_directory(output).as_data_source("train")[0]
    assert pair["view1"].shape == (112, 112, 3)
    assert pair["correspondence"].shape == (64,)


def test_a_view_has_at_most_64_by_64_patches_and_4096_pixels_a_side():
    Settings("x", image_size=64, patch_size=1)
    Settings("x", image_size=4096, patch_size=64)
    for image_size, patch_size, words in ((65, 1, "64 × 64 patches"), (4097, 4097, "at most 4096")):
        with pytest.raises(InputError, match=words):
            Settings("x", image_size=image_size, patch_size=patch_size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input=absent"], "absent: no such file"),
        (["--input="], "--input is missing"),
        (["--output="], "--output is missing"),
        (["--output=notes.txt"], "names a folder"),
        (["--output=notes.txt/pairs"], "cannot be made"),
        (["--output=foreign"], "holds other things (thesis.tex)"),
        (["--output=pairs", "--step=0.5"], "was made with --step=1.0, not --step=0.5"),
        (["--output=pairs", "--policy=exhaustive"], "was made with --policy=step"),
        (["--output=damaged"], "not written by mine"),
        (["--input=empty"], "no videos in it"),
        (["--input=empty", "--source=frames"], "no images in it"),
        (["--source=frames", "--step=0.5"], "whole number"),
        (["--min_overlap=0.8"], "--min_overlap=0.8 --max_overlap=0.75"),
        (["--max_overlap=1.5"], "max_overlap ≤ 1"),
        (["--image_size=230"], "must be a multiple of --patch_size=16"),
        (["--patch_size=0"], "must be a multiple"),
        (["--image_size=256", "--patch_size=1"], "at most 64 × 64 patches"),
        (["--quality=0"], "--quality=0"),
        (["--step=0"], "--step=0"),
        (["--step=nan"], "--step=nan"),
        (["--policy=nearest"], "policy"),
        (["--policy=panoramas"], "--policy=panoramas: not one of adaptive"),
        (["--source=cinema"], "source"),
        (["--source=photos", "--policy=best", "--step=2"], "photos have no order"),
        (["--preset=imagenet"], "preset"),
        (["--margins=0.5,0,0.5,0"], "some must remain"),
        (["--margins=0.1"], "four fractions"),
        (["--rotation=45"], "--rotation=45: not tag, 0, 90, 180 or 270, and there is no such file"),
        (["--min_length=-1"], "--min_length=-1"),
        (["--source=scene3d", "--policy=panoramas", "--samples=0"], "--samples=0"),
        (["--source=scene3d", "--policy=panoramas", "--seed=-1"], "--seed=-1"),
        (["--samples=10"], "--samples: only for --source=scene3d, not video"),
        (["--folder=images"], "--folder: only for --source=frames or photos, not video"),
        (["--source=mimic_release", "--policy=ready", "--min_overlap=0.6"], "takes pairs as they are, untested"),
        (["--beam_options=--runner=X"], "only with --engine=beam"),
        (["--engine=cluster"], "engine"),
        (["--engine=beam", "--beam_options=--runer=FlinkRunner"], "Apache Beam does not know --runer"),
        (["--engine=beam", "--beam_options=--runner=NoSuch"], "Unexpected pipeline runner: NoSuch"),
        (["--rotation=absent.csv"], "there is no such file"),
        (["--workers=0"], "workers"),
        (["--shards=-1"], "shards"),
        (["--unknown=1"], "unknown"),
    ],
)
def test_mistakes_are_one_line(here, arguments, words):
    given = dict(argument.split("=", 1) for argument in arguments)
    given = {"--input": "videos", "--output": "new", "--policy": "step", **given}
    process = commands.run(["data_prep.mine", *(f"{key}={value}" for key, value in given.items())], here)
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith("error: ")
    assert words in process.stderr
    assert process.stdout == ""
    assert not (here / "new").exists()


@pytest.fixture(scope="module")
def here(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("here")
    (folder / "videos").mkdir()
    shutil.copy(videos / "room0.avi", folder / "videos")
    (folder / "empty").mkdir()
    (folder / "notes.txt").touch()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").touch()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "manifest.json").write_text('{"name": "another program"}')
    mine(folder / "videos", folder / "pairs", Settings("videos", policy="step"), processes=1)
    return folder
