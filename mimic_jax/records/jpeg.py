"""Images as they are stored in every kind of record: JPEG, RGB."""

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "height width 3"]


def encode_image(image: Image, quality: int = 95) -> bytes:
    """JPEG bytes of an RGB uint8 image [height, width, 3]; `quality` is 1 to 100."""
    _, buffer = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return buffer.tobytes()


def decode_image(jpeg: bytes) -> Image:
    """RGB uint8 [height, width, 3] from image bytes.

    Raises:
      ValueError: the bytes are not an image that OpenCV can read.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB) if jpeg else None
    if image is None:
        raise ValueError("the bytes are not an image that OpenCV can decode")
    return image


def resize(image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image at another size (height, width): averaged over areas where it shrinks, cubic where it grows."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
