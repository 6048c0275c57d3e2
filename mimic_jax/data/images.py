"""Labelled images as a source of uint8 images and dense labels. `geometry` augments them on the accelerator."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, describe_data
from mimic_jax.data.source import Batch, Source, Spec
from mimic_jax.data.stored import Stored

# Types and trailing dimensions of labels in a batch.
_LABELS = {"depth": (np.float32, ()), "normals": (np.float32, (3,)), "classes": (np.int32, ())}


def images_source(examples: Examples, *, size: tuple[int, int], labels: Sequence[str]) -> Source:
    """Labelled images as a source of `image`, uint8 [height, width, 3], and labels as `data.geometry` describes them.

    Args:
      examples: which images.
      size: images and labels are resized to this height and width, in pixels; labels to the nearest pixel's.
      labels: names out of depth, normals, classes.

    Raises:
      InputError: a dataset lacks a label, or a shard is missing or damaged. From the source: a record is damaged.
    """
    for dataset in examples.mixture.datasets:
        if missing := sorted(set(labels) - set(dataset.schema.features)):
            raise InputError(f"{dataset.folder}: its images have no {missing[0]}; give a dataset with that label")
    stored = Stored.of(examples)
    return Source(
        lengths=tuple(examples.lengths()),
        weights=examples.mixture.weights,
        spec=images_spec(size, labels),
        read=_ReadImage(stored, tuple(size)),
        describe=_Describe(stored),
        fingerprint=examples.mixture.fingerprint(),
        about=describe_data(examples.mixture, "images"),
        unit="images",
    )


def images_spec(size: tuple[int, int], labels: Sequence[str]) -> Spec:
    """Shapes and types of one record of `images_source`.

    Args:
      size: height and width, in pixels.
      labels: names out of depth, normals, classes.
    """
    spec = {"image": jax.ShapeDtypeStruct((*size, 3), np.uint8)}
    for label in labels:
        dtype, trailing = _LABELS[label]
        spec[label] = jax.ShapeDtypeStruct((*size, *trailing), dtype)
    return spec


def resize_label(
    label: Shaped[np.ndarray, "_ _ *channels"], size: tuple[int, int]
) -> Shaped[np.ndarray, "{size[0]} {size[1]} *channels"]:
    """A label at another size (height, width): each pixel has the label of the source pixel that holds its centre."""
    if label.shape[:2] == size:
        return label
    rows, columns = (
        (2 * np.arange(out) + 1) * length // (2 * out) for out, length in zip(size, label.shape, strict=False)
    )
    return label[rows][:, columns]


@dataclasses.dataclass(frozen=True, eq=False)
class _ReadImage:
    """`Source.read` of labelled images; pickled for the processes that read."""

    stored: Stored
    size: tuple[int, int]

    def __call__(self, index: int, row: Batch) -> None:
        record = self.stored.read(index)
        for name, array in row.items():
            try:
                value = _decode(record, name)
            except ValueError as error:
                raise InputError(f"{name} of {_name(record)} is damaged ({error}); make the dataset again") from error
            array[:] = records.resize(value, self.size) if name == "image" else resize_label(value, self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Describe:
    """`Source.describe` of labelled images."""

    stored: Stored

    def __call__(self, index: int) -> str:
        return f"{_name(self.stored.read(index))} ({self.stored.locate(index)})"


def _decode(record: records.LabelledImage, name: str) -> Any:
    if name == "image":
        return records.decode_image(record.image)
    if name == "depth":
        return records.dense.decode_depth(record.depth, record.metres_per_unit)
    if name == "normals":
        return records.dense.decode_normals(record.normals)[0]
    return records.dense.decode_classes(record.classes)


def _name(record: records.LabelledImage) -> str:
    return f"{record.source}/{record.scene}, frame {record.frame}"
