"""The pictures of a record in a report: for each kind, its views and its labels in colour."""

import base64
import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mimic_jax import records
from mimic_jax.records import dense

# The longest side of a picture in the page, and the quality of its JPEG.
SIDE, QUALITY = 320, 80

Picture = UInt8[np.ndarray, "height width 3"]


def of_pair(pair: records.Pair) -> dict[str, Any]:
    """Both views, and which patches match."""
    matches = pair.correspondence.tolist()
    # Other tools may write views that are not cut into a square grid.
    square = round(len(matches) ** 0.5) ** 2 == len(matches)
    return {
        "inliers": pair.inliers,
        "frames": [pair.frame1, pair.frame2],
        "views": [_view(pair.view1), _view(pair.view2)],
        "matches": matches if square and max(matches, default=-1) >= 0 else None,
    }


def of_image(record: records.LabelledImage, classes: Sequence[str]) -> dict[str, Any]:
    """The image with its boxes and keypoints, depth, normals and classes beside it."""
    panels = [_panel("image", lambda: _with_marks(record))]
    legend: list[tuple[str, str]] = []
    if record.depth is not None:
        panels.append(_panel("depth", lambda: colour_depth(dense.decode_depth(record.depth, record.metres_per_unit))))
    if record.normals is not None:
        panels.append(_panel("normals", lambda: (colour_normals(*dense.decode_normals(record.normals)), "")))
    if record.classes is not None:

        def coloured() -> tuple[Picture, str]:
            indices = dense.decode_classes(record.classes)
            present, counts = np.unique(indices[indices >= 0], return_counts=True)
            for index in present[np.argsort(-counts, kind="stable")].tolist():
                legend.append((class_name(index, classes), "#{:02x}{:02x}{:02x}".format(*class_colour(index))))
            return colour_classes(indices), ""

        panels.append(_panel("classes", coloured))
    found: dict[str, Any] = {"frames": [record.frame], "panels": panels, "legend": legend}
    if record.label is not None:
        found["label"] = class_name(record.label, classes)
    return found


def of_stereo(record: records.Stereo) -> dict[str, Any]:
    """Both views, and where the pixels of view 1 move to."""
    panels = [
        _panel(f"view {number}", lambda jpeg=jpeg: (records.decode_image(jpeg), ""))
        for number, jpeg in enumerate((record.view1, record.view2), 1)
    ]
    if record.flow is not None:
        panels.append(_panel("flow", lambda: colour_flow(*dense.decode_flow(record.flow, record.flow_unit))))
    if record.disparity is not None:
        panels.append(
            _panel("disparity", lambda: _ramp(*dense.decode_disparity(record.disparity, record.disparity_unit), "px"))
        )
    return {"frames": [record.frame1, record.frame2], "panels": panels, "legend": []}


def colour_depth(depth: Float[np.ndarray, "height width"]) -> tuple[Picture, str]:
    """Near red, far blue, unknown black; and the range in words."""
    known = depth > 0
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=known)
    picture, _ = _ramp(inverse, known, "")
    words = f"{depth[known].min():.2g} to {depth[known].max():.2g} m" if known.any() else "unknown"
    return picture, words


def colour_normals(normals: Float[np.ndarray, "height width 3"], valid: Bool[np.ndarray, "height width"]) -> Picture:
    """Red grows to the right, green upwards, blue towards the camera; unknown black."""
    picture = np.rint((normals * (1, -1, -1) + 1) / 2 * 255).astype(np.uint8)
    return np.where(valid[..., None], picture, np.uint8(0))


def colour_classes(indices: Int[np.ndarray, "height width"]) -> Picture:
    """A colour for each class; ignored pixels are black."""
    colours = np.array([*map(class_colour, range(int(indices.max(initial=-1)) + 1)), (0, 0, 0)], np.uint8)
    return colours[indices]  # −1, ignored, is the last colour.


def colour_flow(
    flow: Float[np.ndarray, "height width 2"], valid: Bool[np.ndarray, "height width"]
) -> tuple[Picture, str]:
    """The hue is the direction (red: to the right), the saturation the length; not valid black."""
    length = np.linalg.norm(flow, axis=2)
    longest = float(length[valid].max(initial=0))
    hue = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360 / 2
    hsv = np.stack([hue, 255 * length / (longest or 1), np.full_like(hue, 255)], axis=2)
    picture = cv2.cvtColor(np.rint(hsv).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.where(valid[..., None], picture, np.uint8(0)), f"up to {longest:.2g} px"


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB of a class. Neighbouring indices have hues far apart: steps of the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.55, 0.85)[index % 2], (0.95, 0.75)[index // 2 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def class_name(index: int, classes: Sequence[str]) -> str:
    """The name of a class; its index where the dataset does not name it."""
    return classes[index] if 0 <= index < len(classes) else str(index)


def _ramp(
    values: Float[np.ndarray, "height width"], known: Bool[np.ndarray, "height width"], unit: str
) -> tuple[Picture, str]:
    """Low blue, high red, unknown black; and the range in words."""
    if not known.any():
        return np.zeros((*values.shape, 3), np.uint8), "unknown"
    low, high = float(values[known].min()), float(values[known].max())
    steps = np.rint(255 * np.clip((values - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)
    picture = cv2.applyColorMap(steps, cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(known[..., None], picture, np.uint8(0)), f"{low:.2g} to {high:.2g} {unit}"


def _with_marks(record: records.LabelledImage) -> tuple[Picture, str]:
    picture = records.decode_image(record.image)
    thick = max(1, round(max(picture.shape) / 200))
    if record.boxes is not None:
        for box, index in zip(record.boxes, record.box_classes, strict=True):
            left, top, right, bottom = np.rint(box).astype(int).tolist()
            cv2.rectangle(picture, (left, top), (right, bottom), class_colour(int(index)), thick)
    if record.keypoints is not None:
        for instance, joints in enumerate(record.keypoints):
            for x, y, visibility in joints:
                if visibility > 0:
                    cv2.circle(picture, (round(float(x)), round(float(y))), 2 * thick, class_colour(instance), -1)
    return picture, ""


def _panel(name: str, draw) -> dict[str, Any]:
    """A picture, its name and more in words; the picture is None where the label cannot be decoded."""
    try:
        picture, words = draw()
    except (ValueError, cv2.error):
        return {"name": name, "words": "cannot be decoded", "picture": None}
    return {"name": name, "words": words, "picture": _small(np.ascontiguousarray(picture))}


def _view(jpeg: bytes) -> str | None:
    """A view as a picture for the page, in base64; None where it cannot be decoded."""
    try:
        return _small(records.decode_image(jpeg))
    except (ValueError, cv2.error):
        return None


def _small(picture: Picture) -> str:
    height, width, _ = picture.shape
    scale = SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(records.encode_image(picture, QUALITY)).decode()
