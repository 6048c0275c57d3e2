"""Pairs: two overlapping views of one scene, as they are mined from videos and photos."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16

from mimic_jax.records.schema import JPEG, TEXT, Schema, array, number

NAME = "pairs"
VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two views of one scene, as stored.

    view1, view2: JPEG bytes, RGB.
    correspondence: int16 [patches]; for each patch of view1 in row-major order, the patch of view2, −1 where none.
    homography: float32 [3, 3]; view1 pixels → view2 pixels.
    overlap: matched patches / patches, in [0, 1].
    inliers: RANSAC inliers.
    source, scene: dataset name; scene or video id.
    frame1, frame2: frame numbers, −1 where there is none.
    """

    view1: bytes
    view2: bytes
    correspondence: Int16[np.ndarray, " patches"]
    homography: Float32[np.ndarray, "3 3"]
    overlap: float
    inliers: int
    source: str
    scene: str
    frame1: int = -1
    frame2: int = -1


def schema(patches: int | None = None) -> Schema:
    """The schema of a dataset of pairs.

    Args:
      patches: the length of every correspondence. None: any length, for single records; a dataset has one length.
    """
    return Schema(
        kind=NAME,
        version=VERSION,
        description="Pairs of overlapping views of one scene.",
        record=Pair,
        features={
            "view1": JPEG,
            "view2": JPEG,
            "correspondence": array("int16", patches),
            "homography": array("float32", 3, 3),
            "overlap": number("float32"),
            "inliers": number("int32"),
            "source": TEXT,
            "scene": TEXT,
            "frame1": number("int32"),
            "frame2": number("int32"),
        },
    )


def schema_like(features: Mapping[str, Any]) -> Schema:
    """The schema with as many patches as these features of TensorFlow Datasets have."""
    return schema(features["correspondence"].shape[0] if "correspondence" in features else 0)


_ANY = schema()


def encode(pair: Pair) -> bytes:
    """Serializes a pair as a `tf.train.Example`. Equal pairs give equal bytes."""
    return _ANY.encode(pair)


def decode(record: bytes) -> Pair:
    """Reads what `encode` wrote. The views stay JPEG bytes; `decode_image` opens them.

    Raises:
      ValueError: the bytes are not a record of a pair.
    """
    return _ANY.decode(record)
