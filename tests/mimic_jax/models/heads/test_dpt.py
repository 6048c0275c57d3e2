"""The DPT head's parts against PyTorch and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax.models.heads.dpt import DPT, DPTSizes, Fusion, conv, resize_corners, transposed_conv
from mimic_jax.nn.compute import DEFAULT
from mimic_jax.nn.rngs import make_rngs

SMALL = DPTSizes((4, 6, 8, 10), 6, 5)
OPTIONS = {"rngs": make_rngs(0), "compute": DEFAULT}


@pytest.mark.parametrize("size", [(6, 10), (7, 4), (3, 5)])
def test_resizing_is_pytorchs_with_aligned_corners(size):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    found = resize_corners(jnp.asarray(images), size)
    judge = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(found, judge.permute(0, 2, 3, 1), atol=1e-5)


def test_one_row_becomes_two_equal_ones():
    images = jnp.arange(4.0).reshape(1, 1, 4, 1)
    assert np.array_equal(resize_corners(images, (2, 4)), jnp.concatenate([images, images], axis=1))


def test_interpolating_last_changes_nothing():
    """Published: interpolation, then the 1×1 convolution."""
    fusion = Fusion(6, takes_deeper=False, **OPTIONS)
    stage = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))
    published = fusion.out(resize_corners(fusion.unit2(stage), (6, 8)))
    np.testing.assert_allclose(fusion(stage), published, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns", "patch_size"), [(2, 4, 16), (4, 2, 14)])
def test_maps_of_any_widths_and_even_sizes(rows, columns, patch_size):
    head = DPT((3, 5, 7, 9), 2, patch_size=patch_size, sizes=SMALL, rngs=make_rngs(0))
    maps = [jnp.ones((1, rows, columns, width)) for width in (3, 5, 7, 9)]
    found = jax.eval_shape(head, maps)
    assert found.shape == (1, rows * patch_size, columns * patch_size, 2)


def test_odd_numbers_of_patches_are_refused():
    head = DPT((3,) * 4, 1, sizes=SMALL, rngs=make_rngs(0))
    with pytest.raises(ValueError, match="even numbers of patches, not 2×3"):
        head([jnp.ones((1, 2, 3, 3))] * 4)
    with pytest.raises(ValueError, match="features=5 must be an even number"):
        DPTSizes(features=5)
    with pytest.raises(ValueError, match="four widths"):
        DPTSizes(stages=(1, 2, 3))


def test_initial_values_are_pytorchs():
    """Uniform in ±1/√(fan in): the bounds are PyTorch's layers' own, the spread a uniform distribution's."""
    torch = pytest.importorskip("torch")
    ours = {
        "3×3": (conv(64, 32, 3, **OPTIONS), torch.nn.Conv2d(64, 32, 3)),
        "transposed": (transposed_conv(32, 64, 4, **OPTIONS), torch.nn.ConvTranspose2d(32, 64, 4)),
    }
    for name, (found, judge) in ours.items():
        for parameter, tensor in [(found.kernel, judge.weight), (found.bias, judge.bias)]:
            values, expected = np.asarray(parameter.get_value()), tensor.detach().numpy()
            assert values.size == expected.size
            bound = np.abs(judge.weight.detach().numpy()).max()
            assert np.abs(values).max() <= 1.001 * bound, name
            # The standard deviation of n uniform values: 5 standard errors.
            spread = bound / np.sqrt(3)
            assert abs(values.std() - spread) < 5 * spread * np.sqrt(0.2 / values.size) + 1e-3 * bound, name


def test_a_transposed_convolution_is_pytorchs_with_axes_moved():
    torch = pytest.importorskip("torch")
    layer, judge = transposed_conv(3, 5, 2, **OPTIONS), torch.nn.ConvTranspose2d(3, 5, 2, 2)
    layer.kernel.set_value(jnp.asarray(judge.weight.detach().numpy().transpose(2, 3, 1, 0)))
    layer.bias.set_value(jnp.asarray(judge.bias.detach().numpy()))
    images = np.random.default_rng(0).normal(size=(1, 3, 4, 3)).astype(np.float32)
    expected = judge(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1)
    np.testing.assert_allclose(layer(jnp.asarray(images)), expected, atol=1e-5)


def test_every_parameter_is_used():
    """The published head owns a unit without gradient; ours has none."""
    head = DPT((3,) * 4, 1, sizes=SMALL, rngs=make_rngs(0))
    graph, params = nnx.split(head)
    maps = [jax.random.normal(jax.random.key(i), (1, 2, 2, 3)) for i in range(4)]
    loss = lambda params: jnp.square(nnx.merge(graph, params)(maps)).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
