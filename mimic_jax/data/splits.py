"""The training and validation examples of a config's data section."""

import dataclasses

import numpy as np

from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, all_examples, hold_out, open_mixture
from mimic_jax.data.sections import Datasets, Images


def split(data: Datasets, kind: str) -> tuple[Examples, Examples | None, list[str]]:
    """The examples of a data section.

    Args:
      kind: of the records.

    Returns:
      Training examples; validation examples, or None; and notes for the person who starts the run.

    Raises:
      InputError: a dataset cannot be used, or nothing is left to train on.
    """
    mixture = open_mixture(data.train, "config.data.train", kind)
    if data.validation:
        held_out = all_examples(open_mixture(data.validation, "config.data.validation", kind))
        return all_examples(mixture), held_out, [f"{len(held_out)} {kind} to evaluate on"]
    train, held_out = hold_out(mixture, data.holdout_fraction)
    if not len(train):
        raise InputError(
            f"config.data.holdout_fraction={data.holdout_fraction} holds out all scenes of config.data.train; "
            "lower it, or give --config.data.validation=DATASET"
        )
    notes = []
    if data.holdout_fraction and not len(held_out):
        notes.append(
            "warning: config.data.train has a single scene, so nothing is held out and nothing is evaluated; "
            "give --config.data.validation=DATASET"
        )
    if len(held_out):
        notes.append(f"{len(held_out)} {kind} to evaluate on")
    if len(held_out) > len(train):
        notes.append(
            f"warning: config.data.holdout_fraction={data.holdout_fraction} holds out whole scenes: "
            f"{len(held_out)} of {len(held_out) + len(train)} {kind}; to train on all give "
            "--config.data.validation=DATASET of other scenes, or --config.data.holdout_fraction=0"
        )
    return train, held_out if len(held_out) else None, notes


def split_images(data: Images, seed: int) -> tuple[Examples, Examples | None, list[str]]:
    """The labelled images of a data section, with no more training images than `shots` or `fraction` allow.

    Args:
      seed: decides which training images are used.

    Returns:
      As `split`.

    Raises:
      InputError: as for `split`.
    """
    train, held_out, notes = split(data, "images")
    count = data.shots if data.shots is not None else round(data.fraction * len(train))
    if count < len(train):
        train = few(train, max(count, 1), seed)
        notes = [*notes, f"{len(train)} images are used for training (config.data.shots, config.data.fraction)"]
    return train, held_out, notes


def few(examples: Examples, count: int, seed: int) -> Examples:
    """The first `count` examples of a permutation of all, so that a smaller selection is part of a larger one.

    Args:
      examples: of one or more datasets.
      count: at least 1; all are returned where there are no more.
      seed: decides the permutation.
    """
    if count >= len(examples):
        return examples
    chosen = np.sort(np.random.default_rng(seed).permutation(len(examples))[:count])
    ends = np.cumsum(examples.lengths())
    indices = []
    for within, end, length in zip(examples.indices, ends, examples.lengths(), strict=True):
        own = chosen[(chosen >= end - length) & (chosen < end)] - (end - length)
        indices.append(own if within is None else within[own])
    return dataclasses.replace(examples, indices=tuple(indices))
