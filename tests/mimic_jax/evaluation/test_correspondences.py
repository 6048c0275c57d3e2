"""Matching scores against closed forms and brute force, for models whose matches are known."""

import dataclasses
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.evaluation.correspondences import chance, truth
from mimic_jax.evaluation.pairs import evaluate, make_measures, without_layers
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.patches import patchify, unpatchify
from tests.datasets import make_pair, write_dataset
from tests.random_weights import random_params

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))
SIDES = st.integers(1, 5)
DIRECTIONS = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)


@given(st.data(), GRIDS, SIDES, st.integers(1, 2))
def test_chance_is_brute_force(data, grid, side, within):
    numbers = data.draw(st.lists(st.integers(0, side * side - 1), min_size=1, max_size=8))
    places = [
        ((Fraction(n // side) + Fraction(1, 2)) * grid[0] / side, (n % side + Fraction(1, 2)) * grid[1] / side)
        for n in numbers
    ]
    near = [
        (row + Fraction(1, 2) - y) ** 2 + (column + Fraction(1, 2) - x) ** 2 <= within**2
        for y, x in places
        for row in range(grid[0])
        for column in range(grid[1])
    ]
    found = chance(jnp.array(places, float), grid, within)
    assert found.mean() == pytest.approx(sum(near) / len(near), rel=1e-6)


@given(GRIDS, SIDES, st.randoms(use_true_random=False))
def test_truth_is_where_the_pixels_are(grid, side, random):
    """On views of grid · side · 2 pixels, the middle of every patch, mined or the model's, is a corner of pixels."""
    correspondence = np.array([random.randrange(-1, side * side) for _ in range(side * side)], np.int16)
    found = truth(correspondence, grid)
    number = np.arange(grid[0] * grid[1]).reshape(grid)
    of_pixel = number.repeat(2 * side, 0).repeat(2 * side, 1)  # which patch of the model a pixel lies in
    for place in range(side * side):
        # Mined patches are 2 · grid pixels high and wide here.
        middle = [(2 * number + 1) * count for number, count in zip(divmod(place, side), grid, strict=True)]
        assert found.patches[place] == of_pixel[tuple(middle)]
        if correspondence[place] >= 0:
            target = [
                (2 * number + 1) * count
                for number, count in zip(divmod(int(correspondence[place]), side), grid, strict=True)
            ]
            np.testing.assert_allclose(found.places[place], np.array(target) / (2 * side))
    np.testing.assert_array_equal(found.matched, correspondence >= 0)


def shuffled(seed, side, patch=8):
    """A pair whose view 2 has the patches of view 1 in another order, losslessly enough, and the order."""
    rng = np.random.default_rng(seed)
    # Patches of one colour each: JPEG keeps them, and no two are alike.
    colours = rng.permutation(np.linspace(10, 245, side * side)).round()
    other = rng.permutation(side * side)
    third = np.stack([colours, colours[::-1], rng.permutation(colours)], -1)
    patches = third[:, None].repeat(patch * patch, 1).reshape(1, side * side, -1)
    view1 = unpatchify(patches.astype(np.uint8), patch, side, side)[0]
    moved = np.empty_like(patches)
    moved[:, other] = patches  # patch i of view 1 is patch other[i] of view 2
    view2 = unpatchify(moved.astype(np.uint8), patch, side, side)[0]
    correspondence = other.astype(np.int16)
    correspondence[rng.random(side * side) < 0.3] = -1
    return dataclasses.replace(
        make_pair(seed, scene=f"scene {seed % 2}"),
        view1=records.encode_image(view1, 100),
        view2=records.encode_image(view2, 100),
        correspondence=correspondence,
    )


class Finds(nnx.Module):
    """A stand-in that finds patches of the same pixels; layer k of its attention looks k − 1 columns further right."""

    views = 2

    def __init__(self, layers):
        self.sizes = Sizes(16, 1, 2, 16, 1, 2, patch_size=8, predicts=False)
        self.layers = layers
        self.scale = nnx.Param(jnp.ones(()))

    def encode(self, images):
        # On a circle for each of many directions of colour: of all features of one length, the same are nearest.
        angles = patchify(images, 8).reshape(len(images), -1, 64, 3).mean(2) @ DIRECTIONS
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

    def attention(self, view1, view2):
        patches1, patches2 = self.encode(view1), self.encode(view2)
        nearest = -jnp.square(patches1[:, :, None] - patches2[:, None]).sum(-1)
        sharp = nnx.softmax(nearest * self.scale[...], axis=-1)
        side = view1.shape[2] // 8
        grids = sharp.reshape(*sharp.shape[:2], -1, side)
        shifted = [jnp.roll(grids, shift, axis=-1).reshape(sharp.shape) for shift in range(self.layers)]
        return jnp.stack(shifted)


def examples_of(folder, pairs):
    write_dataset(folder, pairs, shards=1)
    return all_examples(open_mixture(str(folder), "data"))


def measured(model, examples, size, **options):
    return evaluate(model, examples, size=size, crop=size, **options)


@pytest.mark.parametrize("batch", [2, 64])
def test_scores_are_those_of_the_distances_that_the_matches_have(tmp_path, batch):
    side, pairs = 4, [shuffled(seed, 4) for seed in range(5)]
    found, absent = measured(Finds(4), examples_of(tmp_path / "d", pairs), (32, 32), batch=batch)
    targets = np.concatenate([pair.correspondence[pair.correspondence >= 0] for pair in pairs])
    column = targets % side
    for layer in range(1, 5):
        # Rolled over the edge, a match lands as many columns away as there are left.
        distance = np.abs((column + layer - 1) % side - column)
        for within in (1, 2):
            assert found[f"layer_{layer}_within_{within}"] == pytest.approx((distance <= within).mean()), layer
    assert found["features_within_1"] == found["correspondence_best_layer_within_1"] == 1
    assert found["correspondence_best_layer"] == 1
    assert set(absent) == {"error, psnr"}
    assert without_layers(found) == {name: value for name, value in found.items() if not name.startswith("layer")}
    near = [
        np.hypot(row - target // side, place - target % side) <= within
        for within in (1, 2)
        for target in targets
        for row in range(side)
        for place in range(side)
    ]
    by_chance = np.reshape(near, (2, -1)).mean(1)
    assert found["chance_within_1"] == pytest.approx(by_chance[0])
    assert found["chance_within_2"] == pytest.approx(by_chance[1])


def test_the_mean_is_over_layers(tmp_path):
    """Of three layers, two agree: the mean has it with them. In the third column they look two columns off."""
    examples = examples_of(tmp_path / "d", [shuffled(seed, 4) for seed in range(3)])

    class Outvoted(Finds):
        def attention(self, view1, view2):
            right, _, wrong = super().attention(view1, view2)
            return jnp.stack([right, wrong, wrong])

    found, _ = measured(Outvoted(3), examples, (32, 32))
    assert found["correspondence_within_1"] == found["layer_3_within_1"] == 0
    assert found["correspondence_within_2"] == found["layer_1_within_1"] == 1


def test_a_croco_made_to_look_for_its_like_finds_every_patch(tmp_path):
    """Where all else adds nothing, queries are keys: a patch looks most at its own place in the same image."""
    sizes = Sizes(64, 1, 1, 64, 2, 1, patch_size=8, mask_ratio=0.5)
    params = random_params("croco", sizes, scale=0)
    norms = [params["encoder"]["norm"], params["decoder"]["norm2"], params["decoder"]["norm_context"]]
    for norm in norms:
        norm["scale"] += 1
    embedding = params["encoder"]["patch_embed"]["kernel"]
    embedding += np.random.default_rng(0).normal(size=embedding.shape)
    cross = params["decoder"]["cross_attention"]
    for kernel, scale in (
        (params["decoder_embed"]["kernel"], 1),
        (cross["query"]["kernel"], 30),
        (cross["key"]["kernel"], 1),
    ):
        kernel += scale * np.eye(64, dtype=np.float32).reshape(kernel.shape[-3:] if kernel.ndim > 2 else kernel.shape)
    # Of one pair the places are right; of the other they are said to be two rows away.
    places = [np.roll(np.arange(16, dtype=np.int16), shift) for shift in (0, -8)]
    pairs = [shuffled(seed, 4) for seed in range(2)]
    pairs = [
        dataclasses.replace(pair, view2=pair.view1, correspondence=place)
        for pair, place in zip(pairs, places, strict=True)
    ]
    measures, absent = make_measures(
        abstract("croco", sizes), examples_of(tmp_path / "d", pairs), size=(32, 32), crop=(32, 32)
    )
    found = {name: value for measure in measures.values() for name, value in measure(params).items()}
    for name in ("correspondence", "layer_1", "layer_2", "features"):
        assert [found[f"{name}_within_{within}"] for within in (1, 2)] == [0.5, 1], name
    # Nothing of what is found is added: the second view is ignored.
    assert found["error"] == found["error_wrong_view"] == found["error_black_view"] > 0.5
    assert found["ratio"] == 1
    assert absent == {}


def test_models_of_one_view_have_features_alone(tmp_path):
    sizes = Sizes(16, 1, 2, 16, 1, 2, patch_size=8, positions="cosine", class_token=True, mask_ratio=0.5)
    examples = examples_of(tmp_path / "d", [shuffled(seed, 4) for seed in range(2)])
    measures, absent = make_measures(abstract("mae", sizes), examples, size=(32, 24), crop=(32, 24))
    params = random_params("mae", sizes)
    found = {name: value for measure in measures.values() for name, value in measure(params).items()}
    names = {f"{name}_within_{within}" for name in ("features", "chance") for within in (1, 2)}
    assert set(found) == names | {"error", "psnr", "pairs"}
    assert absent == {}


def test_a_mixture_of_mined_grids_counts_every_patch_once(tmp_path):
    """4 × 4 and 2 × 2 mined patches on the model's 4 × 4; those of 2 × 2 have centres between the model's patches."""
    fine = [shuffled(seed, 4) for seed in range(2)]
    coarse = [
        dataclasses.replace(shuffled(7, 4), correspondence=np.array([3, -1, -1, -1], np.int16)),
    ]
    write_dataset(tmp_path / "fine", fine, shards=1)
    write_dataset(tmp_path / "coarse", coarse, shards=1)
    both = all_examples(open_mixture(f"{tmp_path}/fine,{tmp_path}/coarse", "data"))
    found, _ = measured(Finds(1), both, (32, 32))
    # The coarse pair's patch (0, 0) has its centre at (1, 1): the model's patch 5, found at its own place.
    view1, view2 = (records.decode_image(getattr(coarse[0], view)).astype(int) for view in ("view1", "view2"))
    colour = view1[12, 12]
    place = min(range(16), key=lambda n: np.abs(view2[n // 4 * 8 + 4, n % 4 * 8 + 4] - colour).sum())
    distance = np.hypot(place // 4 + 0.5 - 3, place % 4 + 0.5 - 3)
    matched = sum(int((pair.correspondence >= 0).sum()) for pair in fine)
    assert found["features_within_1"] == pytest.approx((matched + (distance <= 1)) / (matched + 1))


@pytest.mark.parametrize("patches", [0, 12])
def test_correspondences_of_no_square_grid_are_refused(patches):
    with pytest.raises(InputError, match=f"{patches} patches a pair, which is no square grid"):
        truth(np.zeros(patches, np.int16), (4, 4))


def test_without_matches_there_is_no_score(tmp_path):
    pair = dataclasses.replace(make_pair(0), correspondence=np.full(16, -1, np.int16))
    found, absent = measured(Finds(1), examples_of(tmp_path / "d", [pair]), (32, 32))
    assert found == {}
    assert "matched" in absent["correspondence"]
    assert "prediction head" in absent["error, psnr"]
