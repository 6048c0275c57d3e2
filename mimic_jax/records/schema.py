"""A schema: the features that a kind of record is stored with, and its bytes.

A record is serialized as a `tf.train.Example`, so that TensorFlow Datasets reads it too.
"""

import dataclasses
import functools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

_IMPORTING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Feature:
    """How one field of a record is stored.

    form: "jpeg" or "png" (the field holds the file's bytes), "text", "number", or "array".
    dtype: of numbers, arrays and the pixels of a PNG.
    shape: of an array, where None is any length and may only come first; of a PNG, its number of channels.
    """

    form: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()


JPEG, TEXT = Feature("jpeg"), Feature("text")


def png(dtype: str, channels: int) -> Feature:
    """The bytes of a PNG; `dtype` is "uint8" or "uint16"."""
    return Feature("png", dtype, (channels,))


def number(dtype: str) -> Feature:
    """One number."""
    return Feature("number", dtype)


def array(dtype: str, *shape: int | None) -> Feature:
    """An array of numbers."""
    return Feature("array", dtype, shape)


@dataclasses.dataclass(frozen=True)
class Schema:
    """A kind of record and the features that a dataset of this kind stores.

    kind: "pairs", "images" or "stereo"; the names of the shards begin with it.
    version: of the kind, as TensorFlow Datasets writes versions.
    description: one sentence, stored in `dataset_info.json`.
    record: the dataclass of a record; fields that the dataset does not store are None.
    features: by the name of the record's field.
    """

    kind: str
    version: str
    description: str
    record: type
    features: Mapping[str, Feature]

    def encode(self, record: Any) -> bytes:
        """Serializes a record as a `tf.train.Example`. Equal records give equal bytes.

        Raises:
          ValueError: the record lacks a feature of this schema, has one that the schema lacks, or has another shape.
        """
        example = _example_type()()
        features = example.features.feature
        for field in dataclasses.fields(self.record):
            value = getattr(record, field.name)
            if (value is not None) != (field.name in self.features):
                problem = "missing" if value is None else "not a feature of this dataset"
                raise ValueError(f"{field.name} of a record of {self.kind} is {problem}")
            if value is not None:
                _append(features[field.name], value, self.features[field.name], field.name)
        return example.SerializeToString(deterministic=True)

    def decode(self, record: bytes) -> Any:
        """Reads what `encode` wrote. Images and labels stay bytes of JPEG and PNG files.

        Raises:
          ValueError: the bytes are not a record of this schema.
        """
        from google.protobuf.message import DecodeError

        try:
            features = _example_type().FromString(record).features.feature
            return self.record(**{name: _value(features[name], feature) for name, feature in self.features.items()})
        except (DecodeError, IndexError, ValueError) as error:
            raise ValueError(f"the bytes are not a record of {self.kind}") from error

    def tfds_features(self):
        """The features as TensorFlow Datasets describes them in `features.json`."""
        import tensorflow_datasets as tfds

        def described(feature: Feature):
            match feature.form:
                case "jpeg":
                    return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
                case "png":
                    shape = (None, None, *feature.shape)
                    return tfds.features.Image(shape=shape, dtype=np.dtype(feature.dtype), encoding_format="png")
                case "text":
                    return tfds.features.Text()
                case "number":
                    return tfds.features.Scalar(np.dtype(feature.dtype))
            return tfds.features.Tensor(shape=feature.shape, dtype=np.dtype(feature.dtype))

        return tfds.features.FeaturesDict({name: described(feature) for name, feature in self.features.items()})


def _append(stored, value: Any, feature: Feature, name: str) -> None:
    if feature.form in ("jpeg", "png"):
        stored.bytes_list.value.append(value)
    elif feature.form == "text":
        stored.bytes_list.value.append(value.encode())
    else:
        if feature.form == "array":
            if len(value.shape) != len(feature.shape) or any(
                wanted not in (None, length) for length, wanted in zip(value.shape, feature.shape, strict=True)
            ):
                raise ValueError(f"{name} has shape {value.shape}, not {feature.shape}")
            numbers = value.ravel().tolist()
        else:
            numbers = [value]
        _numbers(stored, feature).extend(numbers)


def _value(stored, feature: Feature) -> Any:
    if feature.form in ("jpeg", "png"):
        return stored.bytes_list.value[0]
    if feature.form == "text":
        return stored.bytes_list.value[0].decode()
    numbers = _numbers(stored, feature)
    if feature.form == "number":
        return numbers[0]
    shape = tuple(-1 if length is None else length for length in feature.shape)
    return np.array(numbers, feature.dtype).reshape(shape)


def _numbers(stored, feature: Feature):
    return stored.float_list.value if np.dtype(feature.dtype).kind == "f" else stored.int64_list.value


@functools.cache
def _example_type():
    # Imported on first use: TensorFlow Datasets takes a moment, and `import mimic_jax` must not. One thread at a time:
    # its lazy modules have locks of their own, which wait for Python's import locks and those for them.
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example
