"""Pictures against what must stand where."""

import dataclasses

import cv2
import jax
import numpy as np
from flax import nnx

from mimic_jax import records
from mimic_jax.models.croco import CroCo, CroCoSizes
from mimic_jax.viz import pictures
from mimic_jax.viz.reconstruction import draw_reconstructions
from tests.datasets import make_pair, write_dataset


def test_lines_end_at_the_centres_of_matched_patches():
    black = records.encode_image(np.zeros((64, 64, 3), np.uint8))
    correspondence = np.full(16, -1, np.int16)
    correspondence[1] = 14  # row 0, column 1 → row 3, column 2
    pair = dataclasses.replace(make_pair(0), view1=black, view2=black, correspondence=correspondence)
    found = pictures.draw_pair(pair)
    assert found.shape == (64, 64 + 4 + 64, 3)
    for x, y in [(24, 8), (64 + 4 + 40, 56)]:
        assert found[y, x].max() > 100
    untouched = pictures.draw_pair(dataclasses.replace(pair, correspondence=np.full(16, -1, np.int16)))
    assert untouched[:, :64].max() == untouched[:, 68:].max() == 0


def test_grid_puts_pictures_in_their_places(tmp_path):
    cells = [[np.full((4, 6, 3), 10 * row + column, np.uint8) for column in range(3)] for row in range(2)]
    found = pictures.grid(cells)
    assert found.shape == (12, 26, 3)
    assert (found[8:12, 10:16] == 11).all()
    assert (found[4:8] == 255).all()
    pictures.save(found, tmp_path / "new" / "grid.png")
    assert (cv2.imread(str(tmp_path / "new" / "grid.png"))[..., ::-1] == found).all()


def test_visible_patches_are_the_true_pixels(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed) for seed in range(3)], shards=1)
    dataset = records.open_dataset(tmp_path / "d")
    model = CroCo(CroCoSizes(16, 1, 2, 16, 1, 2, patch_size=8, mask_ratio=0.5), rngs=nnx.Rngs(0))
    found = draw_reconstructions(model, dataset, size=32, crop=32, rows=3, seed=5)
    side = 160
    assert found.shape == (20 + 3 * side + 2 * 4, 4 * side + 3 * 4, 3)
    visible = np.asarray(model.random_visible(jax.random.key(5), jax.numpy.zeros((3, 32, 32, 3))))
    for row in range(3):
        cells = [found[20 + row * 164 :, column * 164 :][:side:5, :side:5].astype(int) for column in range(4)]
        masked, view2, completed, view1 = cells
        assert np.abs(view1[:, ::-1] - view2).max() < 12, "the views are each other's mirror images"
        for patch in range(16):
            here = np.s_[patch // 4 * 8 : patch // 4 * 8 + 8, patch % 4 * 8 : patch % 4 * 8 + 8]
            if patch in visible[row]:
                assert (masked[here] == view1[here]).all()
                assert (completed[here] == view1[here]).all()
            else:
                assert len(np.unique(masked[here].reshape(-1, 3), axis=0)) == 1
                # The true patch's mean is lent to the completion.
                assert np.abs(completed[here].mean() - view1[here].mean()) < 12
