"""Small datasets for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from mimic_jax import records
from mimic_jax.records import dense


def make_pair(seed: int, patches: int = 16, scene: str | None = None) -> records.Pair:
    """A pair of smooth random views, 48×64, each the other's mirror image; frame1 is the seed."""
    rng = np.random.default_rng(seed)
    image = smooth_image(rng)
    return records.Pair(
        view1=records.encode_image(image),
        view2=records.encode_image(image[:, ::-1].copy()),
        correspondence=rng.integers(-1, patches, patches).astype(np.int16),
        homography=rng.normal(size=(3, 3)).astype(np.float32),
        overlap=float(np.float32(rng.uniform())),
        inliers=int(rng.integers(0, 300)),
        source="tést",
        scene=f"scene {seed}" if scene is None else scene,
        frame1=seed,
        frame2=-1,
    )


def smooth_image(rng: np.random.Generator, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth images survive JPEG almost unchanged."""
    return cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def make_image(seed: int, labels: Sequence[str] = ("depth", "normals", "classes"), scene: str = "room") -> Any:
    """A labelled image, 48×64, with random labels; `frame` is the seed. A tenth of the labels are unknown."""
    rng = np.random.default_rng(seed)
    known = rng.uniform(size=(48, 64)) > 0.1
    values: dict[str, Any] = {}
    if "depth" in labels:
        png, unit = dense.encode_depth(np.where(known, rng.uniform(0.5, 9, known.shape), 0))
        values |= {"depth": png, "metres_per_unit": unit}
    if "normals" in labels:
        values["normals"] = dense.encode_normals(np.where(known[..., None], rng.normal(size=(48, 64, 3)), 0))
    if "classes" in labels:
        values["classes"] = dense.encode_classes(np.where(known, rng.integers(0, 3, known.shape), -1))
    if "keypoints" in labels:
        values["keypoints"] = rng.uniform(0, 48, (seed % 3, 17, 3)).astype(np.float32)
    if "boxes" in labels:
        values["boxes"] = rng.uniform(0, 48, (seed % 4, 4)).astype(np.float32)
        values["box_classes"] = rng.integers(0, 3, seed % 4).astype(np.int32)
    if "label" in labels:
        values["label"] = seed % 3
    return records.LabelledImage(
        image=records.encode_image(smooth_image(rng)),
        intrinsics=np.array([[50, 0, 31.5], [0, 50, 23.5], [0, 0, 1]], np.float32),
        source="tést",
        scene=scene,
        frame=seed,
        **values,
    )


def make_stereo(seed: int, labels: Sequence[str] = ("flow",), scene: str = "room") -> records.Stereo:
    """A stereo record, 48×64, with random truth; `frame1` is the seed."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    if "flow" in labels:
        png, unit = dense.encode_flow(rng.uniform(-30, 30, (48, 64, 2)), rng.uniform(size=(48, 64)) > 0.2)
        values |= {"flow": png, "flow_unit": unit}
    if "disparity" in labels:
        png, unit = dense.encode_disparity(rng.uniform(0, 30, (48, 64)))
        values |= {"disparity": png, "disparity_unit": unit}
    intrinsics = np.array([[50, 0, 31.5], [0, 50, 23.5], [0, 0, 1]], np.float32)
    return records.Stereo(
        view1=records.encode_image(smooth_image(rng)),
        view2=records.encode_image(smooth_image(rng)),
        pose=np.eye(4, dtype=np.float32),
        intrinsics1=intrinsics,
        intrinsics2=intrinsics,
        source="tést",
        scene=scene,
        frame1=seed,
        frame2=seed + 5,
        **values,
    )


def write_dataset(
    folder: Path, examples: Sequence[Any], shards: int = 2, schema: records.Schema | None = None
) -> list[list[Any]]:
    """Deals the records to shards in turn; returns the records of each shard. Without a schema they are pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = schema or records.pairs.schema(len(examples[0].correspondence))
    total = 0
    groups = [list(examples[index::shards]) for index in range(shards)]
    for index, group in enumerate(groups):
        name = records.shard_name("train", index, shards, schema.kind)
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for record in group:
            data = schema.encode(record)
            total += len(data)
            writer.write(data)
        writer.close()
    lengths = [len(group) for group in groups]
    records.write_index(folder, split="train", shard_lengths=lengths, num_bytes=total, schema=schema)
    return groups
