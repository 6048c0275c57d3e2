"""uint8 views → the model's input, on the accelerator: swap, crop, flip, colour jitter, normalisation.

Recipes: CroCo crops 224 of 256 and jitters colours, differently in each view; MIMIC swaps the views with probability ½.
MAE sees single images, of which it cuts windows of 20–100 % of the area and flips half.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of a random resized crop: width / height of the window, and how often a window is drawn before the middle is taken.
ASPECT = (3 / 4, 4 / 3)
DRAWS = 10

Images = Float[Array, "batch height width 3"]
Bytes = UInt8[Array, "batch height width 3"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What the model sees of a batch of pairs.

    crop: height and width of the window that the model sees, in pixels.
    views: "pair": both views of a scene (CroCo). "first": view 1 alone. "both": each view as an image of its own
      (MAE on pairs, as MIMIC has it).
    jitter: brightness, contrast and saturation change by factors within 1 ± jitter.
    swap: the probability that the two views of a pair change places.
    area: the window's share of the image's area, lowest and highest; it is resized to `crop` (MAE: 0.2 to 1). None: a
      window of exactly `crop` pixels. Of single views only.
    flip: the probability that left and right change places. Of single views only.

    Raises:
      ValueError: a field cannot be as it is, or not together with `views`.
    """

    crop: tuple[int, int]
    views: str = "pair"
    jitter: float = 0.0
    swap: float = 0.0
    area: tuple[float, float] | None = None
    flip: float = 0.0

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop={self.crop} must be at least 1×1 pixels")
        if self.views not in ("pair", "first", "both"):
            raise ValueError(f"views={self.views!r} must be 'pair', 'first' or 'both'")
        for field in ("jitter", "swap", "flip"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)} must be from 0 to 1")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area={self.area} must be two shares above 0 and up to 1, the lower first")
        if self.views == "pair" and (self.flip or self.area is not None):
            raise ValueError(f"flip={self.flip} and area={self.area} are for single views, not for views='pair'")
        if self.views != "pair" and self.swap:
            raise ValueError(f"swap={self.swap} is for views='pair', not for single views")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views of a pair that are looked at; the others need not be read."""
        return ("view1",) if self.views == "first" else ("view1", "view2")


def augment(
    key: PRNGKeyArray, batch: dict[str, Bytes], augmentation: Augmentation
) -> tuple[Float[Array, "images crop_height crop_width 3"], ...]:
    """Normalised images, each cropped and jittered on its own.

    Args:
      batch: the views that `augmentation.names` has, uint8 [batch, height, width, 3].

    Returns:
      For "pair" two views [batch, …]; for "first" one [batch, …]; for "both" one [2 batch, …], of which row 2i is
      view 1 of pair i and row 2i + 1 its view 2: on a batch sharded over devices nothing has to move.
    """
    views = [batch[name] for name in augmentation.names]
    if augmentation.views == "pair":
        view1, view2 = views
        key_swap, *keys = jax.random.split(key, 5)
        swapped = jax.random.bernoulli(key_swap, augmentation.swap, (len(view1), 1, 1, 1))
        views = jnp.where(swapped, view2, view1), jnp.where(swapped, view1, view2)
        result = []
        for view, key_crop, key_jitter in zip(views, keys[:2], keys[2:], strict=True):
            images = random_crop(key_crop, view, augmentation.crop).astype(jnp.float32) / 255
            result.append(_finish(key_jitter, images, augmentation))
        return tuple(result)
    images = jnp.stack(views, axis=1)
    images = images.reshape(-1, *images.shape[2:])
    key_crop, key_flip, key_jitter = jax.random.split(key, 3)
    if augmentation.area is None:
        images = random_crop(key_crop, images, augmentation.crop).astype(jnp.float32) / 255
    else:
        images = random_resized_crop(key_crop, images.astype(jnp.float32) / 255, augmentation.crop, augmentation.area)
    flipped = jax.random.bernoulli(key_flip, augmentation.flip, (len(images), 1, 1, 1))
    images = jnp.where(flipped, images[:, :, ::-1], images)
    return (_finish(key_jitter, images, augmentation),)


def center_crop(images: Bytes, crop: tuple[int, int]) -> Float[Array, "batch {crop[0]} {crop[1]} 3"]:
    """The middle window of each image, `crop` being its height and width, normalised: what evaluation sees."""
    height, width = crop
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return normalize(images[:, top : top + height, left : left + width].astype(jnp.float32) / 255)


def normalize(images: Images) -> Images:
    """Colours in [0, 1] → zero mean and unit variance over ImageNet."""
    return (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def denormalize(images: Images) -> Images:
    """The inverse of `normalize`."""
    return images * jnp.array(IMAGENET_STD) + jnp.array(IMAGENET_MEAN)


def random_crop(key: PRNGKeyArray, images: Bytes, crop: tuple[int, int]) -> UInt8[Array, "batch {crop[0]} {crop[1]} 3"]:
    """A window of `crop` (height, width) pixels at a place drawn uniformly for each image."""
    batch, height, width, _ = images.shape
    corners = jax.random.randint(key, (batch, 2), 0, jnp.array([height - crop[0] + 1, width - crop[1] + 1]))
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), (*crop, 3)))(images, corners)


def random_resized_crop(
    key: PRNGKeyArray, images: Images, crop: tuple[int, int], area: tuple[float, float]
) -> Float[Array, "batch {crop[0]} {crop[1]} 3"]:
    """A window drawn for each image by `random_windows`, resized to `crop` (height, width). Colours in [0, 1]."""
    return resize_windows(images, random_windows(key, len(images), images.shape[1:3], area), crop)


def random_windows(
    key: PRNGKeyArray, count: int, size: tuple[int, int], area: tuple[float, float]
) -> Int[Array, "{count} 4"]:
    """Windows of an image of `size` (height, width), as torchvision's RandomResizedCrop draws them.

    The share of the image's area is uniform in `area`, width / height log-uniform in 3/4 … 4/3, the place uniform.
    Where none of ten draws fits into the image, it is the middle window of the nearest allowed shape.

    Returns:
      Rows of top, left, height, width, in pixels.
    """
    height, width = size
    key_area, key_aspect, key_place = jax.random.split(key, 3)
    areas = height * width * jax.random.uniform(key_area, (count, DRAWS), minval=area[0], maxval=area[1])
    low, high = jnp.log(jnp.array(ASPECT))
    aspects = jnp.exp(jax.random.uniform(key_aspect, (count, DRAWS), minval=low, maxval=high))
    sizes = jnp.stack([jnp.sqrt(areas / aspects), jnp.sqrt(areas * aspects)], axis=-1).round().astype(int)
    fits = ((sizes > 0) & (sizes <= jnp.array(size))).all(-1)
    drawn = jnp.take_along_axis(sizes, fits.argmax(1)[:, None, None], axis=1)[:, 0]
    middle = jnp.array([min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))])
    fitted = fits.any(1, keepdims=True)
    windows = jnp.where(fitted, drawn, middle)
    free = jnp.array(size) - windows
    places = jax.random.randint(key_place, (count, 2), 0, free + 1)
    return jnp.concatenate([jnp.where(fitted, places, free // 2), windows], axis=1)


def resize_windows(
    images: Images, windows: Int[Array, "batch 4"], size: tuple[int, int]
) -> Float[Array, "batch {size[0]} {size[1]} 3"]:
    """Each image's window (top, left, height, width) resized to `size`, bicubic, antialiased. Colours in [0, 1].

    As Pillow's `resize(size, BICUBIC, box=window)`, without its rounding: at the window's edges the filter sees the
    pixels beyond them.
    """

    def resize(image: Float[Array, "height width 3"], window: Int[Array, "4"]) -> Float[Array, "rows columns 3"]:
        corner, extent = window[:2], window[2:]
        scale = jnp.array(size) / extent
        return jax.image.scale_and_translate(image, (*size, 3), (0, 1), scale, -corner * scale, "cubic", antialias=True)

    return jnp.clip(jax.vmap(resize)(images, windows), 0, 1)


def window_flops(size: tuple[int, int], crop: tuple[int, int]) -> int:
    """FLOPs of resizing one image's window with `resize_windows`: two matrix products.

    Args:
      size: height and width of images as they are read, in pixels.
      crop: height and width that windows are resized to.
    """
    (height, width), (rows, columns) = size, crop
    first_rows = 3 * rows * width * (height + columns)
    first_columns = 3 * height * columns * (width + rows)
    return 2 * min(first_rows, first_columns)


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


def _finish(key: PRNGKeyArray, images: Images, augmentation: Augmentation) -> Images:
    return normalize(color_jitter(key, images, augmentation.jitter) if augmentation.jitter else images)
