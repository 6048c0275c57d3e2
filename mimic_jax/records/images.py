"""Images with labels: dense (depth, normals, classes), sparse (keypoints, boxes), or one class for the whole image."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from mimic_jax.records.schema import JPEG, TEXT, Feature, Schema, array, number, png

KIND = "images"
VERSION = "1.0.0"
# The labels that a dataset may have, and the fields of a record that each is stored in.
LABELS = {
    "depth": ("depth", "metres_per_unit"),
    "normals": ("normals",),
    "classes": ("classes",),
    "keypoints": ("keypoints",),
    "boxes": ("boxes", "box_classes"),
    "label": ("label",),
}


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """An image and its labels, as stored. A label that the dataset does not have is None.

    Camera axes are OpenCV's: x right, y down, z forward. Pixel (0, 0) is the middle of the top left pixel.

    image: JPEG bytes, RGB.
    intrinsics: float32 [3, 3], pixels; NaN where unknown.
    source, scene: dataset name; scene or video id.
    frame: frame number, −1 where there is none.
    depth: 16-bit PNG, one channel; times `metres_per_unit`, metres along the optical axis. 0 is unknown.
    metres_per_unit: of `depth`.
    normals: 8-bit RGB PNG, round((n + 1) / 2 · 255) of the unit normal n in camera axes, which faces the camera (so a
      wall seen head-on has n = (0, 0, −1)). (0, 0, 0) is unknown.
    classes: PNG of class indices, 8 or 16 bits; the largest value (255 or 65535) is ignored. The names of the classes
      are in the dataset's manifest, in order of their indices.
    keypoints: float32 [instances, joints, 3]; x, y in pixels, and visibility (0 unlabelled, 1 hidden, 2 visible).
    boxes: float32 [boxes, 4]; left, top, right, bottom in pixels.
    box_classes: int32 [boxes]; the class index of each box.
    label: class index of the whole image.
    """

    image: bytes
    intrinsics: Float32[np.ndarray, "3 3"]
    source: str
    scene: str
    frame: int = -1
    depth: bytes | None = None
    metres_per_unit: float | None = None
    normals: bytes | None = None
    classes: bytes | None = None
    keypoints: Float32[np.ndarray, "instances joints 3"] | None = None
    boxes: Float32[np.ndarray, "boxes 4"] | None = None
    box_classes: Int32[np.ndarray, " boxes"] | None = None
    label: int | None = None


def schema(labels: Collection[str], *, class_bits: int = 8, joints: int = 17) -> Schema:
    """The schema of a dataset of images in which every record has the same labels.

    Args:
      labels: names out of `LABELS`.
      class_bits: 8 or 16, of the PNG of classes: 8 bits hold up to 255 classes.
      joints: keypoints of an instance; 17 in COCO.

    Raises:
      ValueError: a label is unknown, or `class_bits` is neither 8 nor 16.
    """
    unknown = sorted(set(labels) - LABELS.keys())
    if unknown or class_bits not in (8, 16):
        raise ValueError(f"unknown labels {unknown}" if unknown else f"class_bits={class_bits}: must be 8 or 16")
    optional: dict[str, Feature] = {
        "depth": png("uint16", 1),
        "metres_per_unit": number("float32"),
        "normals": png("uint8", 3),
        "classes": png(f"uint{class_bits}", 1),
        "keypoints": array("float32", None, joints, 3),
        "boxes": array("float32", None, 4),
        "box_classes": array("int32", None),
        "label": number("int32"),
    }
    stored = [field for label, fields in LABELS.items() if label in labels for field in fields]
    return Schema(
        kind=KIND,
        version=VERSION,
        description="Images with labels.",
        record=LabelledImage,
        features={
            "image": JPEG,
            "intrinsics": array("float32", 3, 3),
            "source": TEXT,
            "scene": TEXT,
            "frame": number("int32"),
            **{field: optional[field] for field in stored},
        },
    )


def labels_of(features: Collection[str]) -> tuple[str, ...]:
    """The labels, out of `LABELS`, among these names of features."""
    return tuple(label for label in LABELS if label in features)


def schema_like(features: Mapping[str, Any]) -> Schema:
    """The schema with the labels that these features of TensorFlow Datasets have."""
    bits = 16 if "classes" in features and features["classes"].np_dtype == np.uint16 else 8
    joints = features["keypoints"].shape[1] if "keypoints" in features else 17
    return schema(labels_of(features), class_bits=bits, joints=joints)
