"""The data sections of configs. Never imports jax."""

import dataclasses
from typing import Any

from mimic_jax.sections import Side, Sides, both_sides, setting


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The data of a run, of any kind of record."""

    train: Any = setting("Dataset folder; several as 'a,b,c', or as a list of (folder, weight).")
    validation: Any = setting("Datasets to evaluate on. Empty: scenes of `train` are held out.")
    holdout_fraction: float = setting(
        "Fraction of the scenes of `train` that is held out, where `validation` is empty.", low=0, below=1
    )
    size: Sides = setting("Size that images are resized to when they are read.", low=1)
    crop: Sides = setting("Size that the model sees: a window of `size`, random in training.", low=1)
    jitter: float = setting("Brightness, contrast and saturation change by factors within 1 ± jitter.", low=0, high=1)
    area: tuple[float, float] | None = setting(
        "Area of a random window as a fraction of the image, lowest and highest; it is resized to `crop`. None: a "
        "window of `crop` pixels.",
        above=0,
        high=1,
    )
    flip: float = setting("Probability of a horizontal flip.", low=0, high=1)

    @property
    def sides(self) -> Side:
        """`size` as (height, width)."""
        return both_sides(self.size)

    @property
    def window(self) -> Side:
        """`crop` as (height, width)."""
        return both_sides(self.crop)


@dataclasses.dataclass(frozen=True)
class Pairs(Datasets):
    """Pairs of views, for completion."""

    views: str = setting(
        "Views of a pair that the model sees: both together, the first, or each as an image of its own.",
        choices=("pair", "first", "both"),
    )
    swap: float = setting("Probability that the two views of a pair are exchanged.", low=0, high=1)


@dataclasses.dataclass(frozen=True)
class Images(Datasets):
    """Images with labels."""

    fraction: float = setting("Fraction of the training images that is used.", above=0, high=1)
    shots: int | None = setting("Number of training images that is used; overrides `fraction`. None: no limit.", low=1)
