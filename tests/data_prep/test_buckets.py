"""gs:// paths, against a server that speaks Google Cloud Storage's language on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[2]


def write_video(path, seed):
    """A camera that moves over a texture by 3/8 of a view a second."""
    rng = np.random.default_rng(seed)
    strip = np.full((120, 160 + 60 * 8, 3), 90, np.uint8)
    for _ in range(700):
        centre, radius = (int(rng.integers(strip.shape[1])), int(rng.integers(120))), int(rng.integers(2, 14))
        cv2.circle(strip, centre, radius, tuple(map(int, rng.integers(0, 256, 3))), -1, cv2.LINE_AA)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (160, 120))
    for frame in range(40):
        writer.write(np.ascontiguousarray(strip[:, 12 * frame : 12 * frame + 160]))
    writer.release()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a process that reads and writes gs://bucket."""
    port = free_port()
    command = [Path(sys.executable).parent / "gcp-storage-emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    folder = tmp_path_factory.mktemp("server")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--in-memory", "--default-bucket=bucket"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        # The second is of a service beside Cloud Storage, which the server has not.
        yield os.environ | {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        server.kill()
        server.wait()


def python(code, environment, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


UPLOAD = """
import sys
from pathlib import Path
from etils import epath
folder, bucket = Path(sys.argv[1]), epath.Path(sys.argv[2])
for path in folder.rglob("*"):
    if path.is_file():
        (bucket / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
"""
DOWNLOAD = """
import json, sys
from etils import epath
bucket = epath.Path(sys.argv[1])
print(json.dumps({path.name: path.read_bytes().hex() for path in bucket.iterdir() if path.is_file()}))
"""
LIST = """
import sys
from etils import epath
print(*sorted(path.name for path in epath.Path(sys.argv[1]).iterdir()))
"""


def in_bucket(folder, environment):
    return {name: bytes.fromhex(data) for name, data in json.loads(python(DOWNLOAD, environment, folder)).items()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("input") / "videos"
    for scene in range(4):
        write_video(folder / f"a room/{scene}.avi", scene)
    python(UPLOAD, environment, folder, "gs://bucket/videos")
    return folder


@pytest.fixture(scope="module")
def expected(videos, tmp_path_factory, environment):
    output = tmp_path_factory.mktemp("mined") / "pairs"
    finish(start(environment, "data_prep.mine", f"--input={videos}", f"--output={output}", "--shards=2"))
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_a_bucket_is_mined_into_a_bucket(expected, environment):
    places = "--input=gs://bucket/videos", "--output=gs://bucket/mined/pairs"
    finish(start(environment, "data_prep.mine", *places, "--shards=2"))
    assert in_bucket("gs://bucket/mined/pairs", environment) == expected
    _, err = finish(start(environment, "data_prep.mine", *places, "--shards=2"))
    assert "already done" in err
    assert python(LIST, environment, "gs://bucket/mined/pairs").split() == sorted(expected)


@pytest.mark.parametrize("after", [".part", "moves.json"])
def test_killed_in_a_bucket_it_carries_on(expected, environment, after):
    output = f"gs://bucket/killed{after}/pairs"
    arguments = "data_prep.mine", "--input=gs://bucket/videos", f"--output={output}", "--shards=2", "--workers=2"
    process = start(environment, *arguments)
    watch = (
        "import sys, time\nfrom etils import epath\n"
        "def there(folder):\n"
        "    try: return any(sys.argv[2] in path.name for path in epath.Path(folder).iterdir())\n"
        "    except FileNotFoundError: return False\n"
        "import fsspec\n"
        "for _ in range(600):\n"
        "    fsspec.filesystem('gs').invalidate_cache()\n"
        "    if there(sys.argv[1] + '/.parts') or there(sys.argv[1] + '/.ready'): break\n"
        "    time.sleep(0.01)\n"
    )
    python(watch, environment, output, after)
    process.kill()
    process.communicate(timeout=60)
    finish(start(environment, *arguments))
    assert in_bucket(output, environment) == expected
    assert python(LIST, environment, output).split() == sorted(expected)


def test_a_dataset_in_a_bucket_grows_is_shown_and_joined(videos, expected, environment, tmp_path):
    output = "gs://bucket/grown/pairs"
    python(UPLOAD, environment, videos / "a room", "gs://bucket/few")
    first = "data_prep.mine", "--input=gs://bucket/few", f"--output={output}", "--shards=2", "--name=videos"
    finish(start(environment, *first))
    few = in_bucket(output, environment)
    write_video(tmp_path / "new" / "1a.avi", 9)
    python(UPLOAD, environment, tmp_path / "new", "gs://bucket/few")
    finish(start(environment, *first))
    grown = in_bucket(output, environment)
    before, after = (json.loads(data["manifest.json"])["scenes"] for data in (few, grown))
    assert list(after) == ["0", "1", "1a", "2", "3"]
    assert {name: entry for name, entry in after.items() if name != "1a"} == before
    finish(start(environment, "data_prep.merge", "gs://bucket/joined", output, "gs://bucket/mined/pairs"))
    joined = json.loads(in_bucket("gs://bucket/joined", environment)["manifest.json"])
    total = sum(
        entry["pairs_kept"] for entry in (*after.values(), *json.loads(expected["manifest.json"])["scenes"].values())
    )
    assert joined["totals"]["pairs_kept"] == total
    out, _ = finish(start(environment, "data_prep.inspect", "gs://bucket/joined"))
    assert str(total) in out
    page = tmp_path / "page.html"
    finish(start(environment, "data_prep.report", "gs://bucket/joined", f"--output={page}"))
    assert f'"count":{total},' in page.read_text()


def test_what_is_not_there_is_one_line(environment):
    _, err = finish(start(environment, "data_prep.mine", "--input=gs://bucket/no", "--output=gs://bucket/x"), 2)
    assert err == "error: gs://bucket/no: no such file or folder (--input)\n"
