"""A model apart from any training run, in memory and as a folder: `weights.json` and `params/`, which Orbax wrote."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from mimic_jax import checkpoints, files
from mimic_jax.command import InputError
from mimic_jax.models.description import Seen, from_json, to_json
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes

DESCRIPTION = "weights.json"
PARAMS = "params"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters and what is known of them.

    kind: the model's, a key of models.kinds.MODELS.
    sizes: the model's.
    params: nested dicts of arrays, as `nnx.merge` takes them: float32, or the type that training stored.
    about: their origin, for people: file or workdir, format, step, config and the like; JSON.
    seen: the image sizes of their training, where known.
    """

    kind: str
    sizes: Sizes
    params: dict[str, Any]
    about: dict[str, Any]
    seen: Seen | None = None

    def model(self) -> nnx.Module:
        """The model itself."""
        graph, _ = nnx.split(abstract(self.kind, self.sizes))
        return nnx.merge(graph, jax.tree.map(jax.numpy.asarray, self.params))


def select(params: dict[str, Any], kind: str, sizes: Sizes, origin: Path) -> dict[str, Any]:
    """The parameters of a model among those of a larger one, such as a fine-tuned encoder with its head.

    Args:
      params: nested dicts of arrays.
      kind, sizes: the model's.
      origin: file or folder of the parameters, for messages.

    Raises:
      InputError: a parameter is missing, or has another shape than the sizes make it.
    """
    given = nnx.traversals.flatten_mapping(params)
    wanted = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(abstract(kind, sizes))))
    for path, parameter in wanted.items():
        name = ".".join(map(str, path))
        if path not in given:
            raise InputError(
                f"{origin}: has no parameter {name}, which its description ({kind}) needs; give other weights"
            )
        if given[path].shape != parameter.shape:
            raise InputError(
                f"{origin}: parameter {name} has shape {given[path].shape}, and its description ({kind}) needs "
                f"{parameter.shape}; give other weights"
            )
    return nnx.traversals.unflatten_mapping({path: given[path] for path in wanted})


def save_folder(weights: Weights, folder: Path) -> None:
    """Writes weights as a folder. It is a weights folder once all of it is there. Types of numbers are kept.

    Raises:
      InputError: the folder is not empty, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; give a new folder")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / PARAMS).absolute(), jax.tree.map(np.asarray, weights.params))
            checkpointer.wait_until_finished()
        described = to_json(weights.kind, weights.sizes, weights.seen) | {"about": weights.about}
        files.write(folder / DESCRIPTION, (json.dumps(described, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error


def load_folder(folder: Path) -> Weights:
    """Reads what `save_folder` wrote.

    Raises:
      InputError: the folder is not a weights folder, or is damaged.
    """
    try:
        read = json.loads((folder / DESCRIPTION).read_text())
        described, about = from_json(read), read["about"]
    except FileNotFoundError:
        raise InputError(
            f"{folder}: has no {DESCRIPTION}; it is not a weights folder, or writing it was cut short"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / DESCRIPTION}: is damaged ({error}); import or export the weights again") from error
    try:
        shapes = checkpoints.shapes_of(folder / PARAMS)
        params = checkpoints.restore_item(
            folder / PARAMS, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        )
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        raise InputError(
            f"{folder / PARAMS}: cannot be read ({type(error).__name__}); import or export the weights again"
        ) from error
    params = select(params, described.kind, described.sizes, folder / PARAMS)
    return Weights(described.kind, described.sizes, jax.tree.map(np.asarray, params), about, described.seen)
