"""Pair records as a source of uint8 views, and as records. Augmentation happens on the accelerator (`augment`)."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, describe_data
from mimic_jax.data.source import Batch, Source
from mimic_jax.data.stored import Stored, read_records

VIEWS = ("view1", "view2")


def pairs_source(examples: Examples, *, size: tuple[int, int], views: Sequence[str] = VIEWS) -> Source:
    """Pairs as a source of their views, uint8 [height, width, 3] each.

    Args:
      examples: which pairs.
      size: views are resized to this height and width, in pixels.
      views: names of the views that are decoded; batches have no others.

    Raises:
      InputError: a shard is missing or damaged. From the source: a record or a view is damaged.
    """
    stored = Stored.of(examples)
    return Source(
        lengths=tuple(examples.lengths()),
        weights=examples.mixture.weights,
        spec={name: jax.ShapeDtypeStruct((*size, 3), np.uint8) for name in views},
        read=_ReadViews(stored, tuple(size)),
        describe=_Describe(stored),
        fingerprint=examples.mixture.fingerprint(),
        about=describe_data(examples.mixture, "pairs"),
        unit="pairs",
    )


def read_pairs(examples: Examples | records.Dataset, indices: Sequence[int]) -> list[records.Pair]:
    """The pairs at given indices of the examples, or of a dataset.

    Raises:
      InputError: a record cannot be read.
    """
    return read_records(examples, indices)


def read_views(pair: records.Pair, size: tuple[int, int]) -> dict[str, UInt8[np.ndarray, "{size[0]} {size[1]} 3"]]:
    """Both views of a pair, by name, as `read_view` returns them."""
    return {name: read_view(pair, name, size) for name in VIEWS}


def read_view(pair: records.Pair, name: str, size: tuple[int, int]) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """One view of a pair, decoded, and resized to `size` (height, width) where it has another size.

    Args:
      name: view1 or view2.

    Raises:
      InputError: OpenCV cannot decode the view.
    """
    try:
        view = records.decode_image(getattr(pair, name))
    except ValueError as error:
        raise InputError(f"{name} of {_name(pair)}, is damaged ({error}); mine the dataset again") from error
    return records.resize(view, size)


@dataclasses.dataclass(frozen=True, eq=False)
class _ReadViews:
    """`Source.read` of pairs; pickled for the processes that read."""

    stored: Stored
    size: tuple[int, int]

    def __call__(self, index: int, row: Batch) -> None:
        pair = self.stored.read(index)
        for name, view in row.items():
            view[:] = read_view(pair, name, self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Describe:
    """`Source.describe` of pairs."""

    stored: Stored

    def __call__(self, index: int) -> str:
        return f"{_name(self.stored.read(index))} ({self.stored.locate(index)})"


def _name(pair: records.Pair) -> str:
    return f"{pair.source}/{pair.scene}, frames {pair.frame1} and {pair.frame2}"
