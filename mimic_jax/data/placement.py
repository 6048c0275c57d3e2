"""Host batches onto devices: each process reads and places the rows that its devices hold."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from mimic_jax.data.source import Batch


def held_rows(sharding: NamedSharding, rows: int) -> Int[np.ndarray, " held"]:
    """The rows of a batch that the devices of this process hold, in ascending order; they need not be contiguous.

    Processes whose devices hold the same rows, as where a model is split over processes, all read them.
    """
    spans = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[span] for span, *_ in spans]))


def to_devices(
    batch: Batch, spec: Mapping[str, jax.ShapeDtypeStruct], rows: Int[np.ndarray, " held"]
) -> dict[str, jax.Array]:
    """The arrays of a batch that `spec` names, on the devices.

    Args:
      batch: the held rows of a global batch.
      spec: shapes of the global batch, with shardings.
      rows: which rows of the global batch these are; see `held_rows`.
    """

    def place(whole: jax.ShapeDtypeStruct, held: np.ndarray) -> jax.Array:
        read = lambda index: held[np.searchsorted(rows, np.arange(whole.shape[0])[index[0]])]  # noqa: E731
        return jax.make_array_from_callback(whole.shape, whole.sharding, read)

    return {name: place(whole, batch[name]) for name, whole in spec.items()}
