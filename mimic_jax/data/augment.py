"""uint8 views → the model's input, on the accelerator: swap, crop, colour jitter, normalisation.

Recipes: CroCo crops 224 of 256 and jitters colours, differently in each view; MIMIC swaps the views with probability ½.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Images = Float[Array, "batch height width 3"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to the two views.

    crop: side of the square window cut from each view, in pixels.
    jitter: brightness, contrast and saturation change by factors within 1 ± jitter.
    swap: the probability that the views change places.
    """

    crop: int
    jitter: float = 0.0
    swap: float = 0.0


def augment(
    key: PRNGKeyArray,
    view1: UInt8[Array, "batch height width 3"],
    view2: UInt8[Array, "batch height width 3"],
    augmentation: Augmentation,
) -> tuple[Float[Array, "batch crop crop 3"], Float[Array, "batch crop crop 3"]]:
    """Two normalised views, each cropped and jittered on its own."""
    key_swap, *keys = jax.random.split(key, 5)
    swapped = jax.random.bernoulli(key_swap, augmentation.swap, (len(view1), 1, 1, 1))
    views = jnp.where(swapped, view2, view1), jnp.where(swapped, view1, view2)
    result = []
    for view, key_crop, key_jitter in zip(views, keys[:2], keys[2:], strict=True):
        images = random_crop(key_crop, view, augmentation.crop).astype(jnp.float32) / 255
        if augmentation.jitter:
            images = color_jitter(key_jitter, images, augmentation.jitter)
        result.append(normalize(images))
    return result[0], result[1]


def center_crop(images: UInt8[Array, "batch height width 3"], crop: int) -> Float[Array, "batch {crop} {crop} 3"]:
    """The middle window of each image, normalised: what evaluation sees."""
    top, left = (images.shape[1] - crop) // 2, (images.shape[2] - crop) // 2
    return normalize(images[:, top : top + crop, left : left + crop].astype(jnp.float32) / 255)


def normalize(images: Images) -> Images:
    """Colours in [0, 1] → zero mean and unit variance over ImageNet."""
    return (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def denormalize(images: Images) -> Images:
    """The inverse of `normalize`."""
    return images * jnp.array(IMAGENET_STD) + jnp.array(IMAGENET_MEAN)


def random_crop(
    key: PRNGKeyArray, images: UInt8[Array, "batch height width 3"], crop: int
) -> UInt8[Array, "batch {crop} {crop} 3"]:
    """A window of crop × crop pixels at a place drawn uniformly for each image."""
    batch, height, width, _ = images.shape
    corners = jax.random.randint(key, (batch, 2), 0, jnp.array([height - crop + 1, width - crop + 1]))
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), (crop, crop, 3)))(images, corners)


def color_jitter(key: PRNGKeyArray, images: Images, strength: float) -> Images:
    """Brightness, contrast and saturation by factors uniform in 1 ± strength, in an order drawn for each image.

    Each is a blend with black, the mean grey or the grey image, as torchvision's ColorJitter. Colours in [0, 1].
    """
    key_factors, key_order = jax.random.split(key)
    batch = len(images)
    factors = jax.random.uniform(key_factors, (batch, 3), minval=1 - strength, maxval=1 + strength)
    orders = jax.vmap(lambda key: jax.random.permutation(key, 3))(jax.random.split(key_order, batch))
    for operation in orders.T:  # 0 brightness, 1 contrast, 2 saturation
        operation = operation[:, None, None, None]
        grey = images @ jnp.array([0.299, 0.587, 0.114])
        grey = grey[..., None]
        blank = jnp.select([operation == 0, operation == 1], [0.0, grey.mean((1, 2), keepdims=True)], grey)
        factor = jnp.take_along_axis(factors, operation[:, 0, 0], axis=1)[:, None, None]
        images = jnp.clip(factor * images + (1 - factor) * blank, 0, 1)
    return images
