"""Augmentation against plain NumPy and Pillow, which torchvision's jitter and resizing call."""

import itertools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mimic_jax.data.augment import (
    Augmentation,
    augment,
    center_crop,
    color_jitter,
    denormalize,
    normalize,
    random_crop,
    random_windows,
    resize_windows,
)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 12, 14, 3), np.uint8)


def test_random_crops_are_windows_of_every_place(images):
    found = np.asarray(random_crop(jax.random.key(0), jnp.asarray(images), (8, 10)))
    corners = set()
    for image, crop in zip(images, found, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if np.array_equal(image[y : y + 8, x : x + 10], crop)]
        assert len(places) == 1
        corners.update(places)
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(5))


def test_center_crop_and_normalisation(images):
    found = center_crop(jnp.asarray(images), (8, 6))
    expected = (images[:, 2:10, 4:10] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
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


def both(view1, view2):
    return {"view1": jnp.asarray(view1), "view2": jnp.asarray(view2)}


def test_views_change_places_with_the_given_probability(images):
    one, other = images[:, :, :12], 255 - images[:, :, :12]  # A crop that leaves no choice.
    key = jax.random.key(0)
    kept = augment(key, both(one, other), Augmentation(crop=(12, 12), swap=0.0))
    swapped = augment(key, both(one, other), Augmentation(crop=(12, 12), swap=1.0))
    np.testing.assert_array_equal(kept[0], normalize(jnp.asarray(one) / 255))
    np.testing.assert_array_equal(kept[1], normalize(jnp.asarray(other) / 255))
    np.testing.assert_array_equal(swapped[0], kept[1])
    np.testing.assert_array_equal(swapped[1], kept[0])
    views = both(np.zeros_like(one), np.full_like(one, 255))
    view1, _ = augment(key, views, Augmentation(crop=(12, 12), swap=0.5))
    share = (np.asarray(denormalize(view1)).mean((1, 2, 3)) > 0.5).mean()
    assert 0.25 < share < 0.75


def test_jitter_differs_between_the_views(images):
    view1, view2 = augment(jax.random.key(0), both(images, images), Augmentation(crop=(12, 12), jitter=0.4))
    assert not np.allclose(view1.mean((1, 2, 3)), view2.mean((1, 2, 3)), atol=0.05)


def test_a_pair_is_cropped_as_before_there_was_anything_else(images):
    """Known results of training hang on these draws: corners from the second and third of five keys."""
    keys = jax.random.split(jax.random.key(5), 5)
    found = augment(jax.random.key(5), both(images, 255 - images), Augmentation(crop=(8, 8)))
    for key, view, cropped in zip(keys[1:3], (images, 255 - images), found, strict=True):
        corners = np.asarray(jax.random.randint(key, (64, 2), 0, jnp.array([5, 7])))
        expected = np.stack([image[y : y + 8, x : x + 8] for image, (y, x) in zip(view, corners, strict=True)])
        np.testing.assert_allclose(denormalize(cropped) * 255, expected, atol=1e-3)


def test_single_views_are_the_first_or_all_in_turn(images):
    batch, crop = both(images, 255 - images), (12, 14)
    (first,) = augment(jax.random.key(0), batch, Augmentation(crop, views="first"))
    np.testing.assert_allclose(denormalize(first) * 255, images, atol=1e-3)
    (all_views,) = augment(jax.random.key(0), batch, Augmentation(crop, views="both"))
    np.testing.assert_allclose(denormalize(all_views[0::2]) * 255, images, atol=1e-3)
    np.testing.assert_allclose(denormalize(all_views[1::2]) * 255, 255 - images, atol=1e-3)


def test_a_flip_is_of_left_and_right_and_of_as_many_as_said(images):
    batch, crop = both(images, images), (12, 14)
    (flipped,) = augment(jax.random.key(0), batch, Augmentation(crop, views="first", flip=1.0))
    np.testing.assert_allclose(denormalize(flipped) * 255, images[:, :, ::-1], atol=1e-3)
    (some,) = augment(jax.random.key(0), batch, Augmentation(crop, views="both", flip=0.25))
    as_they_were = np.isclose(denormalize(some) * 255, images.repeat(2, axis=0), atol=1e-3).all((1, 2, 3))
    assert 0.6 < as_they_were.mean() < 0.9
    assert (as_they_were[0::2] != as_they_were[1::2]).any(), "each image on its own"


# Image and result; few of them, as each is compiled anew.
SIZES = [((17, 24), (6, 7)), ((9, 8), (30, 21)), ((13, 13), (1, 13))]
resized = jax.jit(resize_windows, static_argnums=2)
drawn = jax.jit(random_windows, static_argnums=(1, 2, 3))


@given(st.sampled_from(SIZES), st.integers(0, 1000), st.data())
def test_windows_are_resized_as_pillow_does(sizes, seed, data):
    (height, width), (rows, columns) = sizes
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide))
    image = np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)
    # Single channels of floats: in bytes Pillow rounds and clips between rows and columns.
    expected = np.stack(
        [
            PIL.Image.fromarray(channel).resize(
                (columns, rows), PIL.Image.Resampling.BICUBIC, box=(left, top, left + wide, top + tall)
            )
            for channel in np.moveaxis(image, -1, 0)
        ],
        axis=-1,
    )
    found = resized(jnp.asarray(image)[None], jnp.array([[top, left, tall, wide]]), (rows, columns))[0]
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=2e-4)


def reference_window(rng, height, width, scale):
    """RandomResizedCrop as torchvision's documentation and paper (Inception, arXiv 1409.4842) define it."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return rng.randint(0, height - tall), rng.randint(0, width - wide), tall, wide
    tall, wide = height, width
    if width / height < 3 / 4:
        tall = round(width / (3 / 4))
    elif width / height > 4 / 3:
        wide = round(height * 4 / 3)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


# Often none of ten draws fits, and the middle is taken.
@pytest.mark.parametrize(("height", "width", "area"), [(120, 300, (0.5, 0.6)), (300, 150, (0.64, 0.75))])
def test_windows_are_distributed_as_defined(height, width, area):
    count = 4000
    found = np.asarray(drawn(jax.random.key(1), count, (height, width), area))
    rng = random.Random(0)
    expected = np.array([reference_window(rng, height, width, area) for _ in range(count)])
    top, left, tall, wide = found.T
    assert (found[:, :2] >= 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    measures = {
        "area": lambda windows: windows[:, 2] * windows[:, 3],
        "aspect": lambda windows: windows[:, 3] / windows[:, 2],
        "top": lambda windows: windows[:, 0],
        "left": lambda windows: windows[:, 1],
        "height and place": lambda windows: windows[:, 2] - windows[:, 0] + 0.5 * windows[:, 1],
    }
    for name, measure in measures.items():
        assert scipy.stats.ks_2samp(measure(found), measure(expected)).pvalue > 1e-3, name
    commonest, shares = zip(*(most_common(windows) for windows in (found, expected)), strict=True)
    np.testing.assert_array_equal(*commonest)
    assert min(shares) > 0.1, "the middle"


def test_area_is_uniform_and_aspect_log_uniform_where_all_windows_fit():
    top, left, tall, wide = np.asarray(drawn(jax.random.key(2), 4000, (1000, 1000), (0.1, 0.5))).T
    for values, law in [
        (tall * wide / 1e6, scipy.stats.uniform(0.1, 0.4)),
        (wide / tall, scipy.stats.loguniform(3 / 4, 4 / 3)),
        ((top + 0.5) / (1001 - tall), scipy.stats.uniform()),
        ((left + 0.5) / (1001 - wide), scipy.stats.uniform()),
    ]:
        assert scipy.stats.kstest(values, law.cdf).pvalue > 1e-3


def most_common(windows):
    kinds, counts = np.unique(windows, axis=0, return_counts=True)
    return kinds[counts.argmax()], counts.max() / len(windows)


def test_single_views_show_the_windows_that_were_drawn():
    """Of a vertical gradient the mean tells where a window was."""
    rows = np.arange(0, 256, 4, np.uint8)
    gradient = np.broadcast_to(rows[:, None, None], (16, 64, 48, 3))
    options = Augmentation((8, 6), views="both", area=(0.2, 0.4))
    (found,) = jax.jit(lambda key, batch: augment(key, batch, options))(jax.random.key(0), both(gradient, gradient))
    assert found.shape == (32, 8, 6, 3)
    windows = np.asarray(drawn(jax.random.split(jax.random.key(0), 3)[0], 32, (64, 48), (0.2, 0.4)))
    middle_row = windows[:, 0] + windows[:, 2] / 2 - 0.5
    np.testing.assert_allclose(denormalize(found).mean((1, 2, 3)) * 255, 4 * middle_row, atol=3)
    assert len(np.unique(windows, axis=0)) > 30, "each image on its own"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": "second"}, "views='second'"),
        ({"flip": 0.5}, "flip=0.5.*for single views"),
        ({"area": (0.2, 1.0)}, "area.*for single views"),
        ({"views": "first", "swap": 0.5}, "swap=0.5 is for"),
        ({"views": "both", "area": (0.0, 1.0)}, "area=.*above 0"),
        ({"views": "both", "area": (0.5, 0.2)}, "the lower first"),
        ({"views": "both", "area": (0.5, 1.2)}, "up to 1"),
        ({"views": "both", "flip": 1.5}, "flip=1.5 must be from 0 to 1"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"crop": (0, 8)}, "at least 1×1"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"crop": (8, 8), **fields})
