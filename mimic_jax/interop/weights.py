"""A model apart from any training run, in memory and as a folder: `weights.json` and `params/`, which Orbax wrote."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from mimic_jax import files
from mimic_jax.command import InputError
from mimic_jax.models.kinds import MODELS, abstract
from mimic_jax.models.sizes import Sizes

DESCRIPTION = "weights.json"
PARAMS = "params"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters and what is known of them.

    kind: which of models.kinds.MODELS they are of.
    sizes: the model's.
    params: nested dicts of float32 arrays, as `nnx.merge` takes them.
    about: where they come from, for people: file or workdir, format, step, config and the like; JSON.
    """

    kind: str
    sizes: Sizes
    params: dict[str, Any]
    about: dict[str, Any]

    def model(self) -> nnx.Module:
        """The model itself."""
        graph, _ = nnx.split(abstract(self.kind, self.sizes))
        return nnx.merge(graph, jax.tree.map(jax.numpy.asarray, self.params))


def save_folder(weights: Weights, folder: Path) -> None:
    """Writes weights as a folder of their own. It is a weights folder once all of it is there.

    Raises:
      InputError: the folder holds something already, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: holds other things already; give a new folder")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / PARAMS).absolute(), jax.tree.map(np.asarray, weights.params))
            checkpointer.wait_until_finished()
        described = {"kind": weights.kind, "sizes": dataclasses.asdict(weights.sizes), "about": weights.about}
        files.write(folder / DESCRIPTION, (json.dumps(described, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another") from error


def load_folder(folder: Path) -> Weights:
    """Reads what `save_folder` wrote.

    Raises:
      InputError: the folder is no weights folder, or is damaged.
    """
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        kind, sizes, about = described["kind"], Sizes(**described["sizes"]), described["about"]
        if kind not in MODELS:
            raise ValueError(f"kind {kind!r} is none of {sorted(MODELS)}")
    except FileNotFoundError:
        raise InputError(
            f"{folder}: has no {DESCRIPTION}; it is no weights folder, or writing it was cut short"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / DESCRIPTION}: is damaged ({error}); import or export the weights again") from error
    shapes = nnx.to_pure_dict(nnx.state(abstract(kind, sizes)))
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore((folder / PARAMS).absolute(), like)
    except Exception as error:  # Orbax and TensorStore report damage by many exception types
        raise InputError(
            f"{folder / PARAMS}: cannot be read ({type(error).__name__}); import or export the weights again"
        ) from error
    return Weights(kind, sizes, jax.tree.map(np.asarray, params), about)
