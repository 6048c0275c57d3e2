"""Completion of masked views: CroCo (arXiv 2210.10716), MIMIC's CroCo, MAE, and MAE on both views of a pair."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from mimic_jax import hosts, records, sections
from mimic_jax.command import InputError
from mimic_jax.data.augment import Augmentation, augment, window_flops
from mimic_jax.data.mixture import Examples, all_examples, open_mixture
from mimic_jax.data.pairs import pairs_source, read_pairs
from mimic_jax.data.sections import Pairs
from mimic_jax.data.splits import split
from mimic_jax.evaluation.pairs import BATCH, COMPLETION, CORRESPONDENCE, make_measures, without_layers
from mimic_jax.models import completion
from mimic_jax.models.description import Description
from mimic_jax.models.flops import model_flops
from mimic_jax.models.kinds import MODELS, build
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layout import Layout
from mimic_jax.sections import setting
from mimic_jax.task import Batch, Evaluation, Evaluations, Opened, Results, Rows, Task, Terms, Values
from mimic_jax.tasks.backbones import Completer, read_model
from mimic_jax.viz.reconstruction import make_drawer

# Modules of a completing model besides its encoder.
_REST = ("decoder_embed", "mask_token", "decoder", "decoder_norm", "prediction_head")


@dataclasses.dataclass(frozen=True)
class CompletionEvaluation:
    """How well views are completed, and what the second view contributes."""

    every: int = setting("Steps between two evaluations. 0: none.", low=0)
    examples: int = setting("Pairs that are measured at most, spread evenly.", low=1)
    pictures: int = setting("Pairs in the picture of completed views. 0: no picture.", low=0)


@dataclasses.dataclass(frozen=True)
class CorrespondenceEvaluation:
    """How well patches of one view are found in the other, without having been trained to."""

    every: int = setting("Steps between two evaluations. 0: none.", low=0)
    examples: int = setting("Pairs that are measured at most, spread evenly.", low=1)


@dataclasses.dataclass(frozen=True)
class CompletionEvaluations:
    """The evaluations of completion."""

    completion: CompletionEvaluation = setting("How well views are completed.")
    correspondence: CorrespondenceEvaluation = setting("How well patches are found.")


def make(config: ConfigDict, known: Sizes | None = None) -> Task:
    """The task of a config.

    Args:
      known: sizes of the weights that the run starts from, or of the run that it resumes.

    Raises:
      InputError: a field of the config is missing, unknown or cannot be used.
    """
    data = sections.read(Pairs, config.data, "config.data")
    backbone = read_model(Completer, config.model, known, data)
    evals = sections.read(CompletionEvaluations, config.evals, "config.evals")
    _check(backbone, data)
    augmentation = _augmentation(data)
    rows = _records(config.batch_size, data)
    sizes = backbone.sizes
    images = {name: jax.ShapeDtypeStruct((rows, *data.sides, 3), np.uint8) for name in augmentation.names}

    def model(rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return build(backbone.kind, sizes, rngs, compute)

    def prepare(key: PRNGKeyArray, batch: Batch) -> Rows:
        key_augment, key_mask = jax.random.split(key)
        views = augment(key_augment, batch, augmentation)
        return {"views": views, "visible": completion.random_visible(key_mask, views[0], sizes)}

    def loss(model: nnx.Module, rows: Rows) -> Terms:
        per_row = completion.loss(model, rows["views"], rows["visible"])
        return Terms(per_row, jnp.ones_like(per_row))

    def evaluations(examples: Examples, others: Examples | None, batch: int, keep_unused: bool) -> Evaluations:
        def build_evaluations(model: nnx.Module, layout: Layout | None) -> dict[str, Evaluation]:
            measures, absent = make_measures(
                model,
                examples,
                size=data.sides,
                crop=data.window,
                others=others,
                limits={COMPLETION: evals.completion.examples, CORRESPONDENCE: evals.correspondence.examples},
                batch=batch,
                seed=0,
                layout=layout,
            )
            for what, reason in absent.items():
                hosts.first_says(f"warning: not evaluated: {what}: {reason}")
            draw = None
            if evals.completion.pictures and COMPLETION in measures:
                draw = make_drawer(
                    model,
                    examples,
                    size=data.sides,
                    crop=data.window,
                    rows=min(evals.completion.pictures, len(examples)),
                )
            every = {COMPLETION: evals.completion.every, CORRESPONDENCE: evals.correspondence.every}
            best = {COMPLETION: ("error", "min"), CORRESPONDENCE: None}
            return {
                name: Evaluation(every[name], _run(measure, draw if name == COMPLETION else None), best[name])
                for name, measure in measures.items()
                if every[name] or keep_unused
            }

        return build_evaluations

    def open_data() -> Opened:
        train, held_out, notes = split(data, "pairs")
        source = pairs_source(train, size=data.sides, views=augmentation.names)
        used = held_out is not None and (evals.completion.every or evals.correspondence.every)
        evaluate = evaluations(held_out, train, min(BATCH, rows), False) if used else lambda model, layout: {}
        return Opened(source, evaluate, (*notes, *_size_notes(train, data)))

    def evaluations_on(dataset: str, batch: int) -> Evaluations:
        return evaluations(all_examples(open_mixture(dataset, "data")), None, batch, True)

    def takes(kind: str) -> tuple[str, ...]:
        # The decoder of another kind does something else.
        return ("encoder", *_REST) if kind == backbone.kind else ("encoder",)

    return Task(
        name=f"completion ({backbone.kind})",
        unit="pairs",
        batch=images,
        model=model,
        prepare=prepare,
        loss=loss,
        open=open_data,
        evaluations=evaluations_on,
        takes=takes,
        backbone=backbone,
        # Where both views of a pair are images, a pair is two examples.
        examples_per_record=config.batch_size // rows,
        flops=model_flops(backbone.kind, sizes, data.window, config.batch_size),
        augmentation_flops=config.batch_size * window_flops(data.sides, data.window) if data.area else 0,
    )


def _run(measure: Callable[[Values], dict[str, float]], draw: Callable | None) -> Callable[[Values], Results]:
    def run(values: Values) -> Results:
        pictures = {"reconstruction": draw(values)} if draw else {}
        return Results(without_layers(measure(values)), pictures)

    return run


def _check(backbone: Description, data: Pairs) -> None:
    sizes = backbone.sizes
    views = MODELS[backbone.kind].views
    if (data.views == "pair") != (views == 2):
        needed = "'pair'" if views == 2 else "'first' or 'both'"
        raise InputError(f"config.data.views={data.views!r}: a model of kind {backbone.kind!r} needs {needed}")
    patches = (data.window[0] // sizes.patch_size) * (data.window[1] // sizes.patch_size)
    if not 0 < sizes.visible(patches) < patches:
        raise InputError(
            f"config.model.mask_ratio={sizes.mask_ratio} of {patches} patches leaves {sizes.visible(patches)} visible; "
            "some must be hidden and some not"
        )


def _augmentation(data: Pairs) -> Augmentation:
    try:
        return Augmentation(data.window, data.views, data.jitter, data.swap, data.area, data.flip)
    except ValueError as error:
        raise InputError(f"config.data: {error}") from error


def _records(batch_size: int, data: Pairs) -> int:
    """Records of a batch: half as many as examples where both views of a pair are images."""
    if data.views != "both":
        return batch_size
    if batch_size % 2:
        raise InputError(f"config.batch_size={batch_size} must be even: both views of each pair are images")
    return batch_size // 2


def _size_notes(examples: Examples, data: Pairs) -> list[str]:
    """A warning where stored views are smaller than the size they are read at."""
    (pair,) = read_pairs(examples, [0])
    height, width, _ = records.decode_image(pair.view1).shape
    if (height, width) == data.sides or (height >= data.sides[0] and width >= data.sides[1]):
        return []
    return [
        f"warning: views are stored at {height}×{width} and enlarged to config.data.size={data.size}: mine again with "
        f"--image_size={max(data.sides)}, or give --config.data.size={min(height, width)}"
    ]
