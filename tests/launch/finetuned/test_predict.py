"""`python -m launch.predict`: files of the image's size whose values are the model's."""

import re

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from mimic_jax.models.dense import Dense
from mimic_jax.models.heads.dpt import DPTSizes
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.rngs import make_rngs
from tests import commands
from tests.datasets import smooth_image
from tests.labelled import HEAD
from tests.launch.training import parameters

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = Sizes(16, 2, 2, patch_size=8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two images without loss, of sizes that no patch divides."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, size) in enumerate({"wide.png": (50, 70), "high.png": (66, 49)}.items()):
        cv2.imwrite(str(folder / name), smooth_image(np.random.default_rng(seed), *size)[..., ::-1])
    return folder


def predict(*arguments):
    return commands.run(["launch.predict", *arguments])


def refused(done, pattern):
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^error: .*{pattern}.*$", done.stderr.strip()), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def outputs_of(workdir, step, channels, head, image, size):
    """The network's output for an image at a size (height, width), at the image's own size: no code of the command."""
    dpt = DPTSizes(HEAD["dpt_stages"], HEAD["dpt_features"])
    values = {tuple(name.split("/")): value for name, value in parameters(workdir, step).items()}
    graph, _ = nnx.split(nnx.eval_shape(lambda: Dense(SIZES, channels, head=head, dpt=dpt, rngs=make_rngs(0))))
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    normalized = ((resized / 255 - MEAN) / DEVIATION).astype(np.float32)
    run = jax.jit(lambda values, images: nnx.merge(graph, values)(images))
    return np.asarray(run(nnx.traversals.unflatten_mapping(values), normalized[None]))[0]


def read(path):
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image if image.ndim == 2 else image[..., ::-1]


def test_depth_is_the_models_in_millimetres(depth_run, photos, tmp_path):
    paths = [photos / "wide.png", photos / "high.png"]
    done = predict(f"--workdir={depth_run}", f"--output={tmp_path / 'new' / 'out'}", *paths)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "new" / "out"
    names = [f"{path.stem}_depth{end}.png" for path in paths for end in ("", "_colour")]
    assert {path.name for path in out.iterdir()} == set(names)
    assert all(str(out / name) in done.stdout for name in names)
    # The shorter side is the crop's 32 pixels; both are multiples of 16.
    for path, size in zip(paths, [(32, 48), (48, 32)], strict=True):
        image, stored = read(path), read(out / f"{path.stem}_depth.png")
        assert (stored.dtype, stored.shape) == (np.uint16, image.shape[:2])
        metres = np.exp(outputs_of(depth_run, 12, 1, "dpt", image, size)[..., 0])
        expected = cv2.resize(metres, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) * 1000
        assert expected.std() > 0.1
        assert np.abs(stored - expected).max() < 0.6 + 1e-3 * expected.max()
        coloured = read(out / f"{path.stem}_depth_colour.png")
        assert (coloured.dtype, coloured.shape) == (np.uint8, image.shape)
        assert len(np.unique(coloured.reshape(-1, 3), axis=0)) > 10


def test_normals_are_the_models(normals_run, photos, tmp_path):
    done = predict(f"--workdir={normals_run}", f"--output={tmp_path}", "--step=8", photos / "wide.png")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wide_normals.png"]
    image, stored = read(photos / "wide.png"), read(tmp_path / "wide_normals.png")
    assert (stored.dtype, stored.shape) == (np.uint8, image.shape)
    vectors = 2 * outputs_of(normals_run, 8, 3, "linear", image, (32, 48)).astype(np.float64) - 1
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    resized = cv2.resize(unit, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    resized /= np.linalg.norm(resized, axis=-1, keepdims=True)
    # Where neighbours point in opposite directions their mean has hardly a direction.
    off = np.abs(stored.astype(float) - (resized + 1) / 2 * 255).max(-1)
    assert np.median(off) < 1
    assert (off < 3).mean() > 0.99


def test_mistakes_get_one_line(depth_run, pretrained, photos, tmp_path):
    flags = [f"--workdir={depth_run}", f"--output={tmp_path / 'out'}"]
    (tmp_path / "wide.png").write_text("no image")
    (tmp_path / "taken").write_text("")
    refused(predict(*flags, tmp_path / "wide.png"), r"wide\.png: .*an image file is needed")
    refused(predict(*flags, tmp_path / "absent.png"), r"absent\.png")
    same = predict(*flags, photos / "wide.png", tmp_path / "wide.png")
    refused(same, "another image has the name 'wide' too; predict them separately")
    assert not (tmp_path / "out").exists()
    refused(predict(*flags), "IMAGE… missing")
    refused(predict(*flags, "--step=7", photos / "wide.png"), r"--step=7: there is no such checkpoint")
    refused(predict(f"--workdir={tmp_path}", *flags[1:], photos / "wide.png"), "give a workdir of")
    refused(
        predict(f"--workdir={pretrained}", *flags[1:], photos / "wide.png"), "predicts no labels; give a workdir of"
    )
    taken = predict(flags[0], f"--output={tmp_path / 'taken'}", photos / "wide.png")
    refused(taken, "--output=.*taken cannot be written")
