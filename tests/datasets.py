"""Small datasets for tests."""

from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from mimic_jax import records


def make_pair(seed: int, patches: int = 16, scene: str | None = None) -> records.Pair:
    """A pair of smooth random views, 48×64, each the other's mirror image; frame1 is the seed."""
    rng = np.random.default_rng(seed)
    # Smooth images survive JPEG almost unchanged.
    image = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (64, 48), interpolation=cv2.INTER_LINEAR)
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


def write_dataset(folder: Path, pairs: list[records.Pair], shards: int = 2) -> list[list[records.Pair]]:
    """Deals the pairs to shards in turn; returns the pairs of each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    groups = [pairs[index::shards] for index in range(shards)]
    for index, group in enumerate(groups):
        writer = ArrayRecordWriter(str(folder / records.shard_name("train", index, shards)), "group_size:1")
        for pair in group:
            data = records.encode(pair)
            total += len(data)
            writer.write(data)
        writer.close()
    lengths = [len(group) for group in groups]
    records.write_index(
        folder, split="train", shard_lengths=lengths, num_bytes=total, patches=len(pairs[0].correspondence)
    )
    return groups
