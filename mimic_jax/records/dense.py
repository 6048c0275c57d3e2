"""Dense labels as PNG bytes, and back as NumPy arrays.

A 16-bit label is stored in units: `value = stored · unit`. The default unit is the finest that holds the largest value,
so the error is at most half of it. Where a file to be stored has a unit of its own (KITTI: 1/64 pixel; NYUv2: 1 mm),
give that unit: the stored values are then the file's.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

IGNORED = -1
_MAX16 = 65535
_ZERO_FLOW = 32768
# OpenCV's level 1 takes 1.26 times the bytes for flow and twice the bytes for depth.
_COMPRESSION = 6


def encode_depth(depth: Float[np.ndarray, "height width"], metres_per_unit: float | None = None) -> tuple[bytes, float]:
    """A 16-bit PNG of depth and its metres per unit.

    Args:
      depth: metres; 0, negative or not finite where unknown.
      metres_per_unit: None for the finest that holds the largest depth.

    Returns:
      The PNG's bytes, and metres per unit.

    Raises:
      ValueError: a depth is above 65535 units.
    """
    return _encode_positive(depth, metres_per_unit)


def decode_depth(png: bytes, metres_per_unit: float) -> Float32[np.ndarray, "height width"]:
    """Depth in metres, 0 where unknown.

    Raises:
      ValueError: the bytes are not such a PNG; as for every function here that decodes.
    """
    return _decode_png(png, np.uint16, 1).astype(np.float32) * np.float32(metres_per_unit)


def encode_disparity(
    disparity: Float[np.ndarray, "height width"], pixels_per_unit: float | None = None
) -> tuple[bytes, float]:
    """A 16-bit PNG of disparity in pixels and its pixels per unit; arguments as for `encode_depth`."""
    return _encode_positive(disparity, pixels_per_unit)


def decode_disparity(
    png: bytes, pixels_per_unit: float
) -> tuple[Float32[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Disparity in pixels, 0 where unknown, and whether it is known."""
    stored = _decode_png(png, np.uint16, 1)
    return stored.astype(np.float32) * np.float32(pixels_per_unit), stored > 0


def encode_normals(normals: Float[np.ndarray, "height width 3"]) -> bytes:
    """An 8-bit RGB PNG of unit normals; vectors that are 0 or not finite are stored as unknown.

    The error of a decoded normal is below 0.4 degrees.
    """
    normals = normals.astype(np.float64)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    known = np.isfinite(length) & (length > 0)
    unit = np.divide(normals, length, out=np.zeros_like(normals), where=known)
    return _encode_png(np.where(known, np.rint((unit + 1) / 2 * 255), 0).astype(np.uint8))


def decode_normals(
    png: bytes,
) -> tuple[Float32[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """Unit normals in camera axes, 0 where unknown, and whether they are known."""
    stored = _decode_png(png, np.uint8, 3)
    valid = stored.any(axis=2)
    normals = stored.astype(np.float32) * np.float32(2 / 255) - 1
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[~valid] = 0
    return normals, valid


def encode_classes(classes: Int[np.ndarray, "height width"], bits: int = 8) -> bytes:
    """A PNG of class indices, 8 or 16 bits; −1 (`IGNORED`) is stored as the largest value.

    Raises:
      ValueError: an index is below −1 or does not fit.
    """
    largest = 2**bits - 1
    if classes.size and not -1 <= int(classes.min()) <= int(classes.max()) < largest:
        raise ValueError(f"class indices must be from −1 to {largest - 1}")
    return _encode_png(np.where(classes == IGNORED, largest, classes).astype(f"uint{bits}"))


def decode_classes(png: bytes) -> Int32[np.ndarray, "height width"]:
    """Class indices, −1 (`IGNORED`) where a pixel is to be ignored."""
    stored = _decode_png(png, None, 1)
    return np.where(stored == np.iinfo(stored.dtype).max, IGNORED, stored.astype(np.int32))


def encode_flow(
    flow: Float[np.ndarray, "height width 2"],
    valid: Bool[np.ndarray, "height width"],
    pixels_per_unit: float | None = None,
) -> tuple[bytes, float]:
    """A 16-bit RGB PNG of optical flow and validity, and its pixels per unit.

    Args:
      flow: (right, down) in pixels; anything where not valid.
      valid: where the flow is stored.
      pixels_per_unit: None for the finest that holds the largest flow.

    Returns:
      The PNG's bytes, and pixels per unit.

    Raises:
      ValueError: a valid flow is not finite, or above 32767 units.
    """
    flow = np.where(valid[..., None], flow, 0).astype(np.float64)
    unit = _unit(np.abs(flow), pixels_per_unit, _ZERO_FLOW - 1)
    stored = np.zeros((*valid.shape, 3), np.uint16)
    stored[..., :2] = np.where(valid[..., None], np.rint(flow / unit) + _ZERO_FLOW, 0)
    stored[..., 2] = valid
    return _encode_png(stored), unit


def decode_flow(
    png: bytes, pixels_per_unit: float
) -> tuple[Float32[np.ndarray, "height width 2"], Bool[np.ndarray, "height width"]]:
    """Optical flow (right, down) in pixels, 0 where not valid, and whether it is valid."""
    stored = _decode_png(png, np.uint16, 3)
    valid = stored[..., 2] > 0
    flow = (stored[..., :2].astype(np.float32) - _ZERO_FLOW) * np.float32(pixels_per_unit)
    flow[~valid] = 0
    return flow, valid


def _encode_positive(values: np.ndarray, unit: float | None) -> tuple[bytes, float]:
    known = np.isfinite(values) & (values > 0)
    values = np.where(known, values, 0).astype(np.float64)
    unit = _unit(values, unit, _MAX16)
    # What is known is at least 1: 0 means unknown.
    stored = np.where(known, np.maximum(np.rint(values / unit), 1), 0)
    return _encode_png(stored.astype(np.uint16)), unit


def _unit(values: np.ndarray, given: float | None, most: int) -> float:
    """The unit, as the float32 that is stored. It is rounded up, so that the largest value fits."""
    largest = float(values.max(initial=0))
    if given is None:
        unit = np.float32(largest / most) if largest else np.float32(1)
        return float(unit if largest <= float(unit) * (most + 0.49) else np.nextafter(unit, np.float32(np.inf)))
    unit = float(np.float32(given))
    if not largest <= unit * (most + 0.49):
        raise ValueError(f"a value of {largest:g} is above {most} units of {unit:g}")
    return unit


def _encode_png(values: np.ndarray) -> bytes:
    values = values[..., ::-1] if values.ndim == 3 else values
    return cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])[1].tobytes()


def _decode_png(png: bytes, dtype, channels: int) -> np.ndarray:
    """The pixels as they are stored, [height, width] or RGB [height, width, 3]; any depth where `dtype` is None."""
    values = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if values is None or (1 if values.ndim == 2 else values.shape[2]) != channels or dtype not in (None, values.dtype):
        raise ValueError("the bytes are not a label's PNG")
    return values if channels == 1 else np.ascontiguousarray(values[..., ::-1])
