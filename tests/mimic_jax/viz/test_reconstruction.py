"""Pictures of completed views against what must stand where."""

import dataclasses

import jax
import numpy as np
import pytest

from mimic_jax.command import InputError
from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.models import completion
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.patches import patchify
from mimic_jax.viz.reconstruction import make_drawer, make_drawer_of_views
from tests.datasets import make_pair, write_dataset
from tests.random_weights import random_params

SIZES = Sizes(16, 1, 2, 16, 1, 2, patch_size=8, mask_ratio=0.5)


def test_visible_patches_are_the_true_pixels(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed) for seed in range(3)], shards=1)
    examples = all_examples(open_mixture(str(tmp_path / "d"), "data"))
    draw = make_drawer(abstract("croco", SIZES), examples, size=(32, 32), crop=(32, 32), rows=3, seed=5)
    found = draw(random_params("croco", SIZES))
    side = 160
    assert found.shape == (20 + 3 * side + 2 * 4, 4 * side + 3 * 4, 3)
    visible = np.asarray(completion.random_visible(jax.random.key(5), jax.numpy.zeros((3, 32, 32, 3)), SIZES))
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


@pytest.mark.parametrize(("ratio", "hidden"), [(None, 24), (0.75, 36)])
def test_any_share_of_a_single_view_can_be_hidden(ratio, hidden):
    """6 × 8 patches of colours that are no mean grey: those that are one grey are hidden."""
    images = np.random.default_rng(0).integers(150, 256, (1, 48, 64, 3), np.uint8)
    found = make_drawer_of_views(abstract("mae", SIZES), [images], mask_ratio=ratio)(random_params("mae", SIZES))
    factor = 160 // 64
    masked, completed, true = (
        found[20:, column * (64 * factor + 4) :][: 48 * factor : factor, : 64 * factor : factor] for column in range(3)
    )
    assert found.shape[1] == 3 * 64 * factor + 2 * 4, "an MAE has no second view to show"
    assert (true == images[0]).all()
    grey = (patchify(masked[None], 8)[0].reshape(-1, 64, 3) == [124, 116, 104]).all((1, 2))
    assert grey.sum() == hidden
    same = (patchify(completed[None], 8) == patchify(true[None], 8)).all(-1)[0]
    np.testing.assert_array_equal(same, ~grey)


@pytest.mark.parametrize(("ratio", "class_token"), [(0.1, False), (0.9, True)])
def test_something_must_be_hidden_and_something_seen(ratio, class_token):
    """Of four patches CroCo hides ⌊0.1 · 4⌋ and MAE keeps ⌊0.1 · 4⌋: none."""
    sizes = dataclasses.replace(SIZES, positions="cosine", class_token=class_token)
    with pytest.raises(InputError, match=f"--mask_ratio={ratio}"):
        make_drawer_of_views(abstract("mae", sizes), [np.zeros((1, 16, 16, 3), np.uint8)], mask_ratio=ratio)
