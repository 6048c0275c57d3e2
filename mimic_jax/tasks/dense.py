"""What tasks that predict values for each pixel of an image share: model, data, evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from mimic_jax import hosts, sections
from mimic_jax.command import InputError
from mimic_jax.data import geometry
from mimic_jax.data.images import images_source, images_spec
from mimic_jax.data.mixture import Examples, all_examples, open_mixture
from mimic_jax.data.sections import Images
from mimic_jax.data.source import Source, batch_spec, read_rows, spread
from mimic_jax.data.splits import split_images
from mimic_jax.evaluation.mean import sums_over
from mimic_jax.models.dense import HEADS, Dense
from mimic_jax.models.heads.dpt import DPTSizes
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layout import Layout
from mimic_jax.sections import setting
from mimic_jax.task import Batch, Evaluation, Evaluations, Opened, Results, Rows, Task, Terms, Values
from mimic_jax.tasks.backbones import Encoder, read_model

# Images that are measured at a time.
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Head:
    """The head on an encoder, and the part of the encoder that it sees."""

    head: str = setting("One linear layer on the last block, or DPT on four blocks.", choices=HEADS)
    hooks: tuple[int, ...] | None = setting("Blocks whose outputs the head takes, from 0. None: spread evenly.", low=0)
    normalise_last: bool = setting("Whether the encoder's final norm applies to the last block's output (CroCo: yes).")
    dpt_stages: tuple[int, int, int, int] = setting("Widths of a DPT head's four reassembled maps.", low=1)
    dpt_features: int = setting("Width of a DPT head's fusion stages; even.", low=2)
    drop_path: float = setting("Drop-path rate of the encoder's last block.", low=0, below=1)


@dataclasses.dataclass(frozen=True)
class DenseTask:
    """What is particular to one task.

    name: also of its config sections, and of the label in the dataset.
    channels: of the prediction.
    loss: `loss(prediction, label)`: the mean over the valid entries of each row, and their number.
    measure: `measure(prediction, label)`: sums for each row.
    finish: numbers from the sums over all rows.
    draw: a picture of images, predictions and labels.
    predict: the label that a prediction means.
    best: the number that the best checkpoint is chosen by, and "min" or "max".
    """

    name: str
    channels: int
    loss: Callable[[Array, Array], tuple[Array, Array]]
    measure: Callable[[Array, Array], dict[str, Array]]
    finish: Callable[[Mapping[str, Any]], dict[str, float]]
    draw: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    predict: Callable[[Array], Array]
    best: tuple[str, str]


def make_dense(
    config: ConfigDict, known: Sizes | None, task: DenseTask, head: Head, every: int, limit: int, pictures: int
) -> Task:
    """The task of a config.

    Args:
      known: sizes of the weights that the run starts from, or of the run that it resumes.
      task: what is particular.
      head: the head's section.
      every, limit, pictures: steps between evaluations, images that are measured, and images of the picture.

    Raises:
      InputError: a field of the config is missing, unknown or cannot be used.
    """
    data = sections.read(Images, config.data, "config.data")
    backbone = read_model(Encoder, config.model, known, data)
    sizes = backbone.sizes
    try:
        augmentation = geometry.Geometry(data.window, data.area, data.flip, data.jitter)
        dpt = DPTSizes(head.dpt_stages, head.dpt_features)
        check_grid(head, data.window, sizes.patch_size)
    except ValueError as error:
        raise InputError(f"config.{task.name} and config.data: {error}") from error

    def model(rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        try:
            return Dense(
                sizes,
                task.channels,
                head=head.head,
                hooks=head.hooks,
                normalise_last=head.normalise_last,
                dpt=dpt,
                drop_path=head.drop_path,
                rngs=rngs,
                compute=compute,
            )
        except ValueError as error:
            raise InputError(f"config.{task.name}: {error}") from error

    def prepare(key: PRNGKeyArray, batch: Batch) -> Rows:
        key_augment, key_drop = jax.random.split(key)
        rows = geometry.augment(key_augment, batch, augmentation)
        return rows | ({"keys": jax.random.split(key_drop, len(rows["image"]))} if head.drop_path else {})

    def loss(model: nnx.Module, rows: Rows) -> Terms:
        return Terms(*task.loss(model(rows["image"], rows.get("keys")), rows[task.name]))

    def evaluations(examples: Examples, batch: int) -> Evaluations:
        source = images_source(examples, size=data.sides, labels=(task.name,))

        def build(model: nnx.Module, layout: Layout | None) -> dict[str, Evaluation]:
            return {task.name: Evaluation(every, _evaluation(model, source, batch, layout), task.best)}

        return build

    def _evaluation(
        model: nnx.Module, source: Source, batch: int, layout: Layout | None
    ) -> Callable[[Values], Results]:
        def measure(model: nnx.Module, rows: Batch) -> dict[str, Float[Array, "rows ..."]]:
            rows = geometry.center_crop(rows, data.window)
            return task.measure(model(rows["image"]), rows[task.name])

        totals = sums_over(model, source, measure, indices=spread(source, limit), batch=batch, layout=layout)
        draw = make_drawer(model, source, task, data.window, min(pictures, len(source))) if pictures else None

        def run(values: Values) -> Results:
            numbers = {_number(task.name, name): value for name, value in task.finish(totals(values)).items()}
            return Results(numbers, {task.name: draw(values)} if draw else {})

        return run

    def open_data() -> Opened:
        train, held_out, notes = split_images(data, config.seed)
        source = images_source(train, size=data.sides, labels=(task.name,))
        used = held_out is not None and every
        return Opened(source, evaluations(held_out, BATCH) if used else lambda model, layout: {}, tuple(notes))

    return Task(
        name=f"{task.name} ({head.head} head)",
        unit="images",
        batch=batch_spec(images_spec(data.sides, (task.name,)), config.batch_size),
        model=model,
        prepare=prepare,
        loss=loss,
        open=open_data,
        evaluations=lambda dataset, batch: evaluations(all_examples(open_mixture(dataset, "data", "images")), batch),
        backbone=backbone,
        layers=layers_of(sizes.encoder_depth),
        predict=lambda model, images: {task.name: task.predict(model(images))},
    )


def layers_of(depth: int) -> tuple[tuple[str, int], ...]:
    """Layers of a dense model for layer-wise decay, as CroCo's: the final norm is of the last block's layer."""
    return (
        (r"encoder/(patch_embed|class_token|positions)(/.*)?", 0),
        (r"encoder/blocks/.*", 1),
        (r"encoder/norm/.*", depth),
        (r".*", depth + 1),
    )


def check_grid(head: Head, crop: tuple[int, int], patch: int) -> None:
    """Raises ValueError where a DPT head cannot take the grid of patches."""
    if head.head == "dpt" and any(side // patch % 2 for side in crop):
        raise ValueError(
            f"a DPT head needs even numbers of patches, and crop={crop} has {crop[0] // patch}×{crop[1] // patch}"
        )


def make_drawer(
    model: nnx.Module, source: Source, task: DenseTask, crop: tuple[int, int], rows: int
) -> Callable[[Values], np.ndarray]:
    """Builds `values → picture`: input, prediction, truth and error of examples spread evenly over the source."""
    graph, _ = nnx.split(model)
    batch = read_rows(source, spread(source, rows))
    cropped = geometry.center_crop({name: jnp.asarray(batch[name]) for name in ("image", task.name)}, crop)
    truth, images = np.asarray(cropped[task.name]), np.asarray(cropped["image"])
    top, left = ((size - side) // 2 for size, side in zip(batch["image"].shape[1:3], crop, strict=True))
    shown = batch["image"][:, top : top + crop[0], left : left + crop[1]]

    @jax.jit
    def predict(values: Values, images: Array) -> Array:
        model = nnx.merge(graph, values)
        model.eval()
        return task.predict(model(images))

    def draw(values: Values) -> np.ndarray:
        return task.draw(shown, np.asarray(hosts.fetch(predict(values, images))), truth)

    return draw


def _number(task: str, name: str) -> str:
    """The name of a metric in metrics.jsonl: the mean over images is the field's custom and has the plain name."""
    kind, _, metric = name.partition("/")
    return f"{task}_{metric}" if kind == "per_image" else f"{task}_{kind}_{metric}"
