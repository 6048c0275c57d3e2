"""Two views with dense truth: flow or disparity, and the relative pose."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from mimic_jax.records.schema import JPEG, TEXT, Feature, Schema, array, number, png

KIND = "stereo"
VERSION = "1.0.0"
# The dense truths that a dataset may have, and the fields of a record that each is stored in.
LABELS = {"flow": ("flow", "flow_unit"), "disparity": ("disparity", "disparity_unit")}


@dataclasses.dataclass(frozen=True)
class Stereo:
    """Two views and what is true of them, as stored. A truth that the dataset does not have is None.

    Camera axes are OpenCV's: x right, y down, z forward. Pixel (0, 0) is the middle of the top left pixel.

    view1, view2: JPEG bytes, RGB.
    pose: float32 [4, 4], view 1 → view 2: a point x1 in the axes of camera 1, metres, is at pose · x1 in those of
      camera 2. NaN where unknown.
    intrinsics1, intrinsics2: float32 [3, 3], pixels; NaN where unknown.
    source, scene: dataset name; scene or video id.
    frame1, frame2: frame numbers, −1 where there is none.
    flow: 16-bit RGB PNG. (R − 32768, G − 32768) times `flow_unit` is where a pixel of view 1 moves to in view 2,
      (right, down), in pixels. B is 1 where the pixel is seen in view 2, and 0 where the flow is not valid.
    flow_unit: pixels per unit of `flow`.
    disparity: 16-bit PNG, one channel; times `disparity_unit`, how far to the left of its column in view 1 a pixel is
      in view 2, in pixels. 0 is unknown.
    disparity_unit: pixels per unit of `disparity`.
    """

    view1: bytes
    view2: bytes
    pose: Float32[np.ndarray, "4 4"]
    intrinsics1: Float32[np.ndarray, "3 3"]
    intrinsics2: Float32[np.ndarray, "3 3"]
    source: str
    scene: str
    frame1: int = -1
    frame2: int = -1
    flow: bytes | None = None
    flow_unit: float | None = None
    disparity: bytes | None = None
    disparity_unit: float | None = None


def schema(labels: Collection[str]) -> Schema:
    """The schema of a dataset of stereo records in which every record has the same truths.

    Args:
      labels: "flow", "disparity", or both.

    Raises:
      ValueError: there is none, or one is unknown.
    """
    if not labels or set(labels) - LABELS.keys():
        raise ValueError(f"labels {sorted(labels)}: some of {sorted(LABELS)} are needed")
    optional: dict[str, Feature] = {
        "flow": png("uint16", 3),
        "flow_unit": number("float32"),
        "disparity": png("uint16", 1),
        "disparity_unit": number("float32"),
    }
    stored = [field for label, fields in LABELS.items() if label in labels for field in fields]
    return Schema(
        kind=KIND,
        version=VERSION,
        description="Two views of one scene with dense truth.",
        record=Stereo,
        features={
            "view1": JPEG,
            "view2": JPEG,
            "pose": array("float32", 4, 4),
            "intrinsics1": array("float32", 3, 3),
            "intrinsics2": array("float32", 3, 3),
            "source": TEXT,
            "scene": TEXT,
            "frame1": number("int32"),
            "frame2": number("int32"),
            **{field: optional[field] for field in stored},
        },
    )


def schema_like(features: Mapping[str, Any]) -> Schema:
    """The schema with the truths that these features of TensorFlow Datasets have; with flow where they have none."""
    return schema([label for label in LABELS if label in features] or ["flow"])
