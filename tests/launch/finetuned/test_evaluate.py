"""`python -m launch.evaluate` of a fine-tuned model: the run's own numbers, as a table, a file and pictures."""

import hashlib
import json
import re

import cv2
import numpy as np
import pytest

from mimic_jax import records
from tests import commands
from tests.datasets import make_image, make_pair, write_dataset
from tests.labelled import write_labelled
from tests.launch.training import metrics

LABELS = ("depth", "normals")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The images of the scene that a run on `rooms` evaluates on: that whose name has the smallest SHA-256."""
    folder = tmp_path_factory.mktemp("data") / "held_out"
    scenes = [f"room {index * 4 // 14}" for index in range(14)]
    scene = min(set(scenes), key=lambda name: hashlib.sha256(f"tést/{name}".encode()).digest())
    images = [make_image(index, LABELS, scene) for index, each in enumerate(scenes) if each == scene]
    write_dataset(folder, images, shards=1, schema=records.images.schema(LABELS))
    return folder


def evaluate(*flags):
    return commands.run(["launch.evaluate", *flags])


def refused(done, pattern):
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: .*{pattern}.*\n", done.stderr), done.stderr


def test_the_table_the_file_and_the_pictures_of_a_depth_model(depth_run, held_out, tmp_path):
    flags = [f"--workdir={depth_run}", f"--data={held_out}", "--step=best", "--batch=2"]
    more = [f"--output={tmp_path / 'new' / 'numbers.json'}", f"--pictures={tmp_path / 'pictures'}"]
    done = evaluate(*flags, *more)
    assert done.returncode == 0, done.stderr
    evaluations = {line["step"]: line["evaluation"] for line in metrics(depth_run) if "evaluation" in line}
    best = min(evaluations, key=lambda step: evaluations[step]["depth_absrel"])
    written = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert written["step"] == best
    assert (written["weights"], written["data"]) == (str(depth_run), str(held_out))
    assert written["numbers"].keys() == evaluations[best].keys()
    for name, value in evaluations[best].items():
        np.testing.assert_allclose(written["numbers"][name], value, rtol=2e-5, err_msg=name)
    assert f"step {best}" in done.stdout
    shown = f"{evaluations[best]['depth_absrel']:.4g}"
    assert re.search(rf"depth absrel *│ *{re.escape(shown)}", done.stdout), done.stdout
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "depth.png"
    # The three images in rows of input, prediction, truth and error, though the run itself drew none.
    height, width = cv2.imread(str(picture)).shape[:2]
    assert height > 96 * 3
    assert width > 96 * 4
    assert cv2.imread(str(picture)).std() > 10


def test_the_newest_step_of_a_normals_model_by_default(normals_run, held_out):
    done = evaluate(f"--weights={normals_run}", f"--data={held_out}")
    assert done.returncode == 0, done.stderr
    assert "step 12" in done.stdout
    (last,) = (line["evaluation"] for line in metrics(normals_run) if "evaluation" in line)
    assert re.search(rf"normals mean *│ *{last['normals_mean']:.4g} ", done.stdout), done.stdout


def test_mistakes_get_one_line(depth_run, held_out, tmp_path):
    run = [f"--workdir={depth_run}", f"--data={held_out}"]
    refused(evaluate(*run, "--step=5"), r"--step=5: there is no such checkpoint in .*checkpoints, only \[4, 8, 12\]")
    refused(evaluate(*run, "--step=last"), "--step=last: there is no such checkpoint")
    refused(evaluate(*run, "--output=numbers.txt"), r"--output=numbers\.txt must end in \.json")
    refused(
        evaluate(*run, "--image_size=32"), "--image_size: a model of the task 'depth' is measured at the size of its"
    )
    write_labelled(tmp_path / "normals", 2, ("normals",))
    refused(evaluate(run[0], f"--data={tmp_path / 'normals'}"), "normals: its images have no depth")
    write_dataset(tmp_path / "pairs", [make_pair(0)], shards=1)
    refused(evaluate(run[0], f"--data={tmp_path / 'pairs'}"), "pairs.*images")
    refused(evaluate(run[0], f"--data={tmp_path / 'absent'}"), "absent")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    refused(evaluate(f"--workdir={tmp_path / 'broken'}", run[1]), r"config\.json: is damaged")
