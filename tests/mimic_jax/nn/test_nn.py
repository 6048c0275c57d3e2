"""Patches, positions and masks against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.nn.masking import gather, mask_of, random_visible, scatter
from mimic_jax.nn.patches import patchify, unpatchify
from mimic_jax.nn.positions import (
    grid_positions,
    resize_table,
    resize_table_published,
    rope_2d,
    rotation_2d,
    sincos_2d,
)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_patchify_round_trip(patch, rows, columns):
    images = np.random.default_rng(0).normal(size=(2, rows * patch, columns * patch, 3))
    patches = patchify(images, patch)
    np.testing.assert_array_equal(unpatchify(patches, patch, rows, columns), images)
    # Patches run row-major; inside one, row, then column, then channel.
    last = images[1, -patch:, -patch:].ravel()
    np.testing.assert_array_equal(patches[1, -1], last)


def test_patchify_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="30×32 pixels"):
        patchify(np.zeros((1, 30, 32, 3)), 16)


def turned(tokens, positions):
    """By RoPE100."""
    return rope_2d(tokens, rotation_2d(positions, tokens.shape[-1], 100.0))


def test_positions_match_the_published_code(parity):
    fixture = np.load(parity / "positions.npz")
    tokens = jnp.asarray(fixture["in/tokens"].transpose(0, 2, 1, 3))
    found = turned(tokens, jnp.asarray(fixture["in/positions_yx"]))
    np.testing.assert_allclose(found.transpose(0, 2, 1, 3), fixture["out/rope100"], atol=1e-5)
    np.testing.assert_allclose(
        sincos_2d(768, 14, 14)[fixture["in/sincos_rows"]], fixture["out/sincos_768_14x14"], atol=1e-6
    )
    np.testing.assert_allclose(sincos_2d(64, 3, 5), fixture["out/sincos_64_3x5"], atol=1e-6)


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_rope_scores_depend_on_relative_position_alone(dy, dx):
    queries, keys = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))
    positions = jnp.asarray(grid_positions(2, 3))[None]
    scores = lambda p: jnp.einsum("bqhd,bkhd->bhqk", turned(queries, p), turned(keys, p))  # noqa: E731
    np.testing.assert_allclose(scores(positions), scores(positions + jnp.array([dy, dx])), atol=1e-4)


def test_rope_by_hand():
    """One head of 4 channels has one frequency, 1: (y, y, x, x) turn as two complex numbers."""
    token = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    found = turned(token, jnp.array([[[2, 5]]])).ravel()
    y, x = (1 + 2j) * np.exp(2j), (3 + 4j) * np.exp(5j)
    np.testing.assert_allclose(found, [y.real, y.imag, x.real, x.imag], rtol=1e-5)


def test_sincos_by_hand():
    """Width 4 has one frequency, 1, and x comes first."""
    np.testing.assert_allclose(sincos_2d(4, 2, 3)[5], [np.sin(2), np.cos(2), np.sin(1), np.cos(1)], rtol=1e-6)


def test_sincos_of_another_grid_covers_the_field_of_the_one_it_was_trained_on():
    """The middle of patch 5 of 8 lies where 5.5 · 4/8 − 0.5 = 2.25 of 4 does; x and y each by their own ratio."""
    found = sincos_2d(8, 8, 6, trained_on=(4, 3)).reshape(8, 6, 8)
    y, x = 2.25, (1 + 0.5) * 3 / 6 - 0.5
    angles = lambda place: np.array([place, place / 100])  # noqa: E731
    expected = np.concatenate([np.sin(angles(x)), np.cos(angles(x)), np.sin(angles(y)), np.cos(angles(y))])
    np.testing.assert_allclose(found[5, 1], expected, rtol=1e-6)
    np.testing.assert_array_equal(sincos_2d(8, 4, 3, trained_on=(4, 3)), sincos_2d(8, 4, 3))


@pytest.mark.parametrize("grid", [(20, 31), (9, 4), (14, 14)])
def test_a_learned_table_is_resized_as_pytorch_resizes_it(grid):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(14 * 10, 6)).astype(np.float32)
    found = resize_table(jnp.asarray(table), (14, 10), *grid)
    image = torch.from_numpy(table.reshape(1, 14, 10, 6)).permute(0, 3, 1, 2)
    # What timm's resample_abs_pos_embed does.
    resized = torch.nn.functional.interpolate(image, grid, mode="bicubic", antialias=True)
    np.testing.assert_allclose(found, resized.permute(0, 2, 3, 1).reshape(-1, 6), atol=1e-5)


def test_masks_hide_the_count_they_should_uniformly():
    images, patches, visible = 4000, 10, 3
    indices = np.asarray(random_visible(jax.random.key(0), images, patches, visible))
    assert indices.shape == (images, visible)
    assert (np.diff(indices) > 0).all()
    mask = np.asarray(mask_of(jnp.asarray(indices), patches))
    assert (mask.sum(1) == patches - visible).all()
    # Every patch is visible with probability 3/10, every pair of patches together with 3·2/(10·9): 5 standard errors.
    seen = ~mask
    np.testing.assert_allclose(seen.mean(0), 0.3, atol=5 * np.sqrt(0.21 / images))
    together = (seen[:, :, None] & seen[:, None]).mean(0)[np.triu_indices(patches, 1)]
    np.testing.assert_allclose(together, 6 / 90, atol=5 * np.sqrt(0.0622 / images))


def test_scatter_puts_tokens_back_where_gather_took_them():
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 4))
    visible = jnp.array([[0, 3], [1, 4]])
    back = np.asarray(scatter(gather(tokens, visible), visible, jnp.full(4, 7.0), 5))
    for image in range(2):
        for patch in range(5):
            expected = tokens[image, patch] if patch in visible[image] else np.full(4, 7.0)
            np.testing.assert_array_equal(back[image, patch], expected)


def test_published_tables_are_resized_as_the_published_programs_do(parity):
    fixture = np.load(parity / "downstream_position_tables.npz")
    rows = fixture["in/vit/pos_embed"][0, 1:]
    side = round(len(rows) ** 0.5)
    multimae = fixture["out/multimae_resized_pos_emb"][0]  # [width, rows, columns]
    mae, vitpose = (fixture[f"out/{name}_resized_pos_embed"][0, 1:] for name in ("mae", "vitpose"))
    unit = round((len(vitpose) / 12) ** 0.5)  # ViTPose's grids are 4:3
    expected = {
        "multimae": (multimae.shape[1:], multimae.reshape(len(multimae), -1).T),
        "mae": ((round(len(mae) ** 0.5),) * 2, mae),
        "vitpose": ((4 * unit, 3 * unit), vitpose),
        "croco": (tuple(fixture["in/croco_new_grid"].tolist()), fixture["out/croco_resized_enc_pos_embed"]),
    }
    for name, (grid, table) in expected.items():
        found = resize_table_published(jnp.asarray(rows), (side, side), *grid)
        np.testing.assert_allclose(found, table, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("grid", [(20, 31), (9, 4), (14, 14), (1, 2)])
def test_published_resizing_is_pytorchs_bicubic(grid):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(14 * 10, 6)).astype(np.float32)
    found = resize_table_published(jnp.asarray(table), (14, 10), *grid)
    image = torch.from_numpy(table.reshape(1, 14, 10, 6)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, grid, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(found, resized.permute(0, 2, 3, 1).reshape(-1, 6), atol=1e-4)
