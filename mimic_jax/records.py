"""The pair record and the dataset folder: the one thing that data preparation and training share. Never imports jax.

A dataset is a TensorFlow Datasets folder of ArrayRecord shards that opens without TensorFlow:

    tfds.builder_from_directory(folder).as_data_source("train")

holding `features.json`, `dataset_info.json`, shards `pairs-SPLIT.array_record-00000-of-00008` and `manifest.json`.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Int16, UInt8

from mimic_jax import files
from mimic_jax.command import InputError

NAME = "pairs"
VERSION = "1.0.0"
MANIFEST = "manifest.json"
# In a dataset folder that is being mined: what is not yet part of it.
PARTS = ".parts"

_IMPORTING = threading.Lock()

Image = UInt8[np.ndarray, "height width 3"]


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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A finished dataset folder, opened for reading. `patches` is the length of every correspondence."""

    folder: Path
    patches: int
    shards: tuple[Path, ...]
    shard_lengths: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.shard_lengths)

    def fingerprint(self) -> str:
        """Tells one state of a dataset from another: it changes when pairs are added."""
        return hashlib.sha256((self.folder / "dataset_info.json").read_bytes()).hexdigest()

    def manifest(self) -> dict:
        """What the mining run wrote about itself: settings, versions, and counts per scene."""
        return json.loads((self.folder / MANIFEST).read_text())


def encode(pair: Pair) -> bytes:
    """Serializes a pair as a `tf.train.Example`. Equal pairs give equal bytes."""
    example = _example_type()()
    feature = example.features.feature
    for field in ("view1", "view2"):
        feature[field].bytes_list.value.append(getattr(pair, field))
    for field in ("source", "scene"):
        feature[field].bytes_list.value.append(getattr(pair, field).encode())
    for field in ("inliers", "frame1", "frame2"):
        feature[field].int64_list.value.append(getattr(pair, field))
    feature["correspondence"].int64_list.value.extend(pair.correspondence.tolist())
    feature["homography"].float_list.value.extend(pair.homography.ravel().tolist())
    feature["overlap"].float_list.value.append(pair.overlap)
    return example.SerializeToString(deterministic=True)


def decode(record: bytes) -> Pair:
    """Reads what `encode` wrote. The views stay JPEG bytes; `decode_image` opens them.

    Raises:
      ValueError: the bytes are no pair record.
    """
    from google.protobuf.message import DecodeError

    try:
        feature = _example_type().FromString(record).features.feature
        return Pair(
            view1=feature["view1"].bytes_list.value[0],
            view2=feature["view2"].bytes_list.value[0],
            correspondence=np.array(feature["correspondence"].int64_list.value, np.int16),
            homography=np.array(feature["homography"].float_list.value, np.float32).reshape(3, 3),
            overlap=feature["overlap"].float_list.value[0],
            inliers=feature["inliers"].int64_list.value[0],
            source=feature["source"].bytes_list.value[0].decode(),
            scene=feature["scene"].bytes_list.value[0].decode(),
            frame1=feature["frame1"].int64_list.value[0],
            frame2=feature["frame2"].int64_list.value[0],
        )
    except (DecodeError, IndexError, ValueError) as error:
        raise ValueError("the bytes are not a pair record") from error


def encode_image(image: Image, quality: int = 95) -> bytes:
    """JPEG bytes of an RGB uint8 image [height, width, 3]; `quality` is 1 to 100."""
    _, buffer = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return buffer.tobytes()


def decode_image(jpeg: bytes) -> Image:
    """RGB uint8 [height, width, 3] from image bytes.

    Raises:
      ValueError: the bytes are no image OpenCV can read.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB) if jpeg else None
    if image is None:
        raise ValueError("the bytes are not an image that OpenCV can decode")
    return image


def resize(image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image at another size (height, width); areas are averaged where it shrinks, cubic where it grows."""
    if image.shape[:2] == size:
        return image
    # Averaging over areas is for shrinking alone.
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def shard_name(split: str, index: int, shards: int) -> str:
    """The file name of shard `index` of `shards`, as TensorFlow Datasets spells it."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{shards:05d}"


def write_index(
    folder: str | os.PathLike,
    *,
    split: str,
    shard_lengths: Sequence[int],
    num_bytes: int,
    patches: int,
) -> None:
    """Writes `features.json` and `dataset_info.json`, which make a folder of finished shards a dataset.

    Args:
      folder: where the shards, named by `shard_name`, already are.
      split: the name of the split, "train" by default elsewhere.
      shard_lengths: records in each shard, in order.
      num_bytes: bytes of all records together.
      patches: the length of every record's correspondence.
    """
    import tensorflow_datasets as tfds

    split_info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=list(shard_lengths),
        num_bytes=num_bytes,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=os.fspath(folder), dataset_name=NAME, split=split, filetype_suffix="array_record"
        ),
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=os.fspath(folder), module_name="mimic_jax.records"
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=_features(patches), description="Pairs of overlapping views of one scene."
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict([split_info]))
    info.write_to_directory(folder)


def open_dataset(folder: str | os.PathLike, split: str = "train") -> Dataset:
    """Opens a dataset folder and checks that it is whole and of this schema.

    Raises:
      InputError: the folder is missing, is no dataset, has another schema, lacks the split or a shard, or is empty.
    """
    import tensorflow_datasets as tfds

    folder = files.as_path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such dataset folder; `python -m data_prep.mine` makes one")
    if not (folder / "features.json").is_file() or not (folder / "dataset_info.json").is_file():
        raise InputError(
            f"{folder}: not a finished pair dataset (features.json or dataset_info.json is missing); "
            "give the --output of a `python -m data_prep.mine` that kept pairs"
        )
    try:
        info = tfds.builder_from_directory(folder).info
        patches = info.features["correspondence"].shape[0] if "correspondence" in info.features else 0
    except Exception as error:  # tfds reports a damaged index by many exception types
        raise InputError(f"{folder}: its dataset_info.json or features.json cannot be read ({error})") from error
    if info.features.to_json() != _features(patches).to_json():
        ours, theirs = set(_features(patches)), set(info.features)
        different = f"missing {sorted(ours - theirs)}, unknown {sorted(theirs - ours)}" if ours != theirs else "types"
        raise InputError(f"{folder}: a dataset of another schema ({different}); a pair dataset is needed")
    if split not in info.splits:
        raise InputError(f"{folder}: has no split {split!r}, only {sorted(info.splits)}")
    lengths = tuple(info.splits[split].shard_lengths)
    shards = tuple(folder / shard_name(split, index, len(lengths)) for index in range(len(lengths)))
    for shard, length in zip(shards, lengths, strict=True):
        if not shard.is_file():
            raise InputError(f"{shard}: this shard of the dataset is missing; copy it again or mine again")
        # What lies in a bucket would have to be copied here to be counted.
        if not files.is_remote(shard) and _count_records(shard) != length:
            raise InputError(f"{shard}: this shard is damaged or cut short; copy it again or mine again")
    if not sum(lengths):
        raise InputError(f"{folder}: the dataset has no pairs in split {split!r}")
    return Dataset(folder, patches, shards, lengths)


def scene_spans(manifest: dict) -> dict[str, range]:
    """Where the records of each scene lie in a finished dataset, by the scene's name in its manifest.

    Records are written in the order of the manifest's scenes, through all shards in turn.
    """
    counts = [entry["pairs_kept"] for entry in manifest["scenes"].values()]
    ends = itertools.accumulate(counts)
    return {name: range(end - count, end) for name, count, end in zip(manifest["scenes"], counts, ends, strict=True)}


def _count_records(shard: Path) -> int | None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(shard))
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, IndexError):  # array_record has no exception of its own
        return None
    return count


def _features(patches: int):
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "view1": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "view2": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "correspondence": tfds.features.Tensor(shape=(patches,), dtype=np.int16),
            "homography": tfds.features.Tensor(shape=(3, 3), dtype=np.float32),
            "overlap": tfds.features.Scalar(np.float32),
            "inliers": tfds.features.Scalar(np.int32),
            "source": tfds.features.Text(),
            "scene": tfds.features.Text(),
            "frame1": tfds.features.Scalar(np.int32),
            "frame2": tfds.features.Scalar(np.int32),
        }
    )


@functools.cache
def _example_type():
    # Imported on first use: TensorFlow Datasets takes a moment, and `import mimic_jax` must not. One thread at a time:
    # its lazy modules have locks of their own, which wait for Python's import locks and those for them.
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example
