"""Augmentation against plain NumPy and Pillow, which torchvision's jitter calls."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from mimic_jax.data.augment import (
    Augmentation,
    augment,
    center_crop,
    color_jitter,
    denormalize,
    normalize,
    random_crop,
)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 12, 14, 3), np.uint8)


def test_random_crops_are_windows_of_every_place(images):
    found = np.asarray(random_crop(jax.random.key(0), jnp.asarray(images), 8))
    corners = set()
    for image, crop in zip(images, found, strict=True):
        places = [(y, x) for y in range(5) for x in range(7) if np.array_equal(image[y : y + 8, x : x + 8], crop)]
        assert len(places) == 1
        corners.update(places)
    assert {y for y, _ in corners} == set(range(5))
    assert {x for _, x in corners} == set(range(7))


def test_center_crop_and_normalisation(images):
    found = center_crop(jnp.asarray(images), 8)
    expected = (images[:, 2:10, 3:11] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(denormalize(normalize(found)), found, atol=1e-5)


def test_jitter_is_some_order_of_pillows_enhancements(images):
    """Each image must equal Pillow's brightness, contrast and saturation in one of the six orders."""
    strength, key = 0.4, jax.random.key(3)
    found = np.asarray(color_jitter(key, jnp.asarray(images[:12] / 255, jnp.float32), strength)) * 255
    factors = np.asarray(jax.random.uniform(jax.random.split(key)[0], (12, 3), minval=0.6, maxval=1.4))
    enhancers = [PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color]
    orders = set()
    for image, jittered, factor in zip(images, found, factors, strict=False):
        errors = {}
        for order in itertools.permutations(range(3)):
            enhanced = PIL.Image.fromarray(image)
            for operation in order:
                enhanced = enhancers[operation](enhanced).enhance(float(factor[operation]))
            errors[order] = np.abs(np.asarray(enhanced) - jittered).max()
        best = min(errors, key=errors.get)
        assert errors[best] < 4, "Pillow rounds to bytes after each of three operations"
        orders.add(best)
    assert len(orders) > 2


def test_views_change_places_with_the_given_probability(images):
    one, other = jnp.asarray(images), jnp.asarray(255 - images)
    key = jax.random.key(0)
    one, other = one[:, :, :12], other[:, :, :12]  # A crop that leaves no choice.
    kept = augment(key, one, other, Augmentation(crop=12, swap=0.0))
    swapped = augment(key, one, other, Augmentation(crop=12, swap=1.0))
    np.testing.assert_array_equal(kept[0], normalize(one / 255))
    np.testing.assert_array_equal(kept[1], normalize(other / 255))
    np.testing.assert_array_equal(swapped[0], kept[1])
    np.testing.assert_array_equal(swapped[1], kept[0])
    view1, _ = augment(key, jnp.zeros_like(one), jnp.full_like(one, 255), Augmentation(crop=12, swap=0.5))
    share = (np.asarray(denormalize(view1)).mean((1, 2, 3)) > 0.5).mean()
    assert 0.25 < share < 0.75


def test_jitter_differs_between_the_views(images):
    view1, view2 = augment(jax.random.key(0), *[jnp.asarray(images)] * 2, Augmentation(crop=12, jitter=0.4))
    assert not np.allclose(view1.mean((1, 2, 3)), view2.mean((1, 2, 3)), atol=0.05)
