"""The commands that look into a model, from the command line: real processes, weights on disk, image files."""

import json
import re

import cv2
import numpy as np
import pytest

from launch.views import read_views, seen_at
from mimic_jax.command import InputError
from mimic_jax.interop.weights import Weights, save_folder
from mimic_jax.models.description import Seen
from mimic_jax.models.sizes import Sizes
from tests import commands
from tests.datasets import make_pair, write_dataset
from tests.random_weights import random_params

SIZES = Sizes(16, 1, 2, 16, 2, 2, patch_size=8, mask_ratio=0.5)
ENCODER = Sizes(16, 1, 2, patch_size=8, predicts=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """croco/ and vit/, weights; pairs/, a dataset; and two images of different shapes."""
    folder = tmp_path_factory.mktemp("looking")
    for kind, sizes in (("croco", SIZES), ("vit", ENCODER)):
        save_folder(Weights(kind, sizes, random_params(kind, sizes), {"origin": "a test"}), folder / kind)
    write_dataset(folder / "pairs", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(5)])
    for name, shape in (("view1.png", (70, 40, 3)), ("view2.jpg", (30, 90, 3))):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return folder


def run(folder, name, *flags):
    return commands.run([f"launch.{name}", *flags], folder)


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert all(re.search(word, lines[0]) for word in words), lines[0]


@pytest.mark.parametrize("positions", ["rope100", "cosine"])
def test_an_export_is_seen_at_the_size_that_its_workdir_is(tmp_path, positions):
    """The sizes of a rotary model do not say it."""
    from mimic_jax.interop.exporting import export
    from mimic_jax.interop.load import load

    grid = (8, 8) if positions == "cosine" else None
    sizes = Sizes(16, 1, 2, 16, 2, 2, patch_size=8, positions=positions, position_grid=grid)
    weights = Weights("croco", sizes, random_params("croco", sizes), {"step": 7}, Seen((68, 72), (64, 64)))
    assert seen_at(weights, None) == ((68, 72), (64, 64))
    for format, name in (("safetensors", "w.safetensors"), ("orbax", "w"), ("croco_pth", "w.pth")):
        if format == "croco_pth":
            pytest.importorskip("torch")
        export(weights, tmp_path / name, format)
        assert seen_at(load(tmp_path / name), None) == ((68, 72), (64, 64))


def test_evaluate_tells_every_number_and_writes_them(folder):
    done = run(folder, "evaluate", "--weights=croco", "--data=pairs", "--image_size=32", "--output=new/numbers.json")
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "new" / "numbers.json").read_text())
    numbers = told["numbers"]
    assert numbers["pairs"] == 5
    assert told["crop"] == [32, 32]
    for within in (1, 2):
        for name in ("correspondence", "correspondence_best_layer", "features", "chance", "layer_1", "layer_2"):
            assert 0 <= numbers[f"{name}_within_{within}"] <= 1
    assert numbers["ratio"] == pytest.approx(numbers["error"] / numbers["error_wrong_view"])
    for name in ("error", "error_wrong_view", "error_black_view", "ratio", "psnr"):
        assert f"{numbers[name]:.4g}" in done.stdout
    assert f"{numbers['chance_within_2']:.1%}" in done.stdout


def test_two_image_files_are_completed_at_any_size_and_ratio(folder):
    sizes = ["--image_size=32x48", "--mask_ratio=0.75", "--output=r.png"]
    done = run(folder, "reconstruct", "--weights=croco", "view1.png", "view2.jpg", *sizes)
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(folder / "r.png"))
    assert picture.shape == (20 + 3 * 32, 4 * 3 * 48 + 3 * 4, 3)
    expected = read_views([str(folder / "view1.png")], (32, 48))[0]
    found = picture[20::3, 3 * (3 * 48 + 4) :: 3, ::-1]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("weights", "given", "rows"), [("croco", ["view1.png", "view2.jpg"], 3), ("vit", ["--data=pairs"], 2)]
)
def test_correspondences_are_drawn_for_files_and_datasets(folder, weights, given, rows):
    sizes = ["--image_size=32", "--rows=2", "--output=c.png"]
    done = run(folder, "correspondences", f"--weights={weights}", *given, *sizes)
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(folder / "c.png"))
    label = 0 if "--data=pairs" in given else 22
    assert picture.shape[0] == 20 + rows * (256 + label + 4) - 4


def test_mistakes_get_one_clear_line(folder):
    output = "--output=picture.png"
    refused(run(folder, "reconstruct", "--weights=vit", "view1.png", "view2.jpg", output), "vit", "no prediction head")
    refused(run(folder, "reconstruct", "--weights=croco", "view1.png", output), "VIEW2 missing")
    refused(run(folder, "correspondences", "--weights=croco", output), "--data=DATASET or the image files VIEW1 VIEW2")
    refused(run(folder, "reconstruct", "--weights=croco", "--data=pairs", "--mask_ratio=1.5", output), "mask_ratio=1.5")
    refused(run(folder, "evaluate", "--weights=absent", "--data=pairs"), "absent: no such file")
    refused(run(folder, "evaluate", "--weights=croco", "--data=pairs", "--output=numbers.txt"), r"\.json")
    refused(run(folder, "correspondences", "--weights=croco", "a", "b", "c", output), "unexpected argument 'c'")
    assert not (folder / "picture.png").exists()


def test_views_are_seen_as_in_training():
    def weights(seen, **sizes):
        return Weights("croco", Sizes(16, 1, 2, **sizes), {}, {}, seen)

    ours = Seen((40, 68), (32, 32))
    assert seen_at(weights(ours), None) == ((40, 68), (32, 32))
    assert seen_at(weights(ours), "64") == ((64, 64), (64, 64))
    assert seen_at(weights(ours), "32X64") == ((32, 64), (32, 64))
    assert seen_at(weights(None, positions="cosine", position_grid=(3, 5), patch_size=8), None)[1] == (24, 40)
    assert seen_at(weights(None, patch_size=14), None)[1] == (224, 224)
    assert seen_at(weights(None, patch_size=15), None)[1] == (210, 210)
    for wrong in ("40", "32x", "32x32x32", "-32", "0", "big"):
        with pytest.raises(InputError, match=f"--image_size={wrong}"):
            seen_at(weights(None), wrong)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"notes\.txt"):
        read_views([str(tmp_path / "notes.txt")], (32, 32))
    with pytest.raises(InputError, match=r"absent\.png"):
        read_views([str(tmp_path / "absent.png")], (32, 32))


def test_real_images_are_cut_from_their_middle(real):
    """Against the same scaling of the cut: what is left and right of the middle has no influence."""
    (found,) = read_views([str(real / "pairs" / "dsc_1.jpg")], (682 // 2, 682 // 2))
    image = cv2.imread(str(real / "pairs" / "dsc_1.jpg"))[..., ::-1]
    means = image.reshape(341, 2, 512, 2, 3).mean((1, 3))
    left = (512 - 341) // 2
    assert np.abs(found - means[:, left : left + 341]).max() <= 0.5
