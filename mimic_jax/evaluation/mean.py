"""Sums and weighted means over examples: exact for an uneven last batch, on any number of devices and hosts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mimic_jax import hosts
from mimic_jax.data.placement import held_rows, to_devices
from mimic_jax.data.source import Source, batch_spec, read_rows
from mimic_jax.nn.layout import Layout

Batch = dict[str, Array]
_COUNTED = "counted"
# By name, each row's value and its weight in the mean.
Measures = dict[str, tuple[Float[Array, " rows"], Float[Array, " rows"]]]

# Measures a model's values: numbers by name.
Mean = Callable[[PyTree], dict[str, float]]
Totals = dict[str, Float[np.ndarray, "..."]]


def mean_over(
    model: nnx.Module, source: Source, measure: Callable[[nnx.Module, Batch], Measures], **options: Any
) -> Mean:
    """Builds `values → means`: Σ value · weight / Σ weight of each measure over the examples.

    Args:
      model, source, options: see `sums_over`.
      measure: `measure(model, batch)`; the batch has the source's arrays and "index".

    Returns:
      A function of a model's values that gives the means by name; NaN for a measure without any weight.
    """

    def sums(model: nnx.Module, batch: Batch) -> dict[str, Float[Array, " rows"]]:
        found = {}
        for name, (value, weight) in measure(model, batch).items():
            found[f"{name}/value"] = jnp.where(weight > 0, value * weight, 0)
            found[f"{name}/weight"] = weight
        return found

    total = sums_over(model, source, sums, **options)

    def mean(values: PyTree) -> dict[str, float]:
        totals = total(values)
        names = [name.removesuffix("/value") for name in totals if name.endswith("/value")]
        pairs = {name: (float(totals[f"{name}/value"]), float(totals[f"{name}/weight"])) for name in names}
        return {name: value / weight if weight else float("nan") for name, (value, weight) in pairs.items()}

    return mean


def sums_over(
    model: nnx.Module,
    source: Source,
    measure: Callable[[nnx.Module, Batch], dict[str, Float[Array, "rows ..."]]],
    *,
    indices: Sequence[int] | None = None,
    batch: int = 64,
    layout: Layout | None = None,
    threads: int = 8,
) -> Callable[[PyTree], Totals]:
    """Builds `values → totals`: the sum of each measure over the examples.

    Examples are read anew at every call, a batch at a time. Rows that fill up the last batch are not counted. What is
    random about an example is to be drawn by its index (`row_keys`), so that results do not depend on the batch size.

    Args:
      model: gives the graph; its values are not kept. It is measured in evaluation mode.
      measure: `measure(model, batch)`; the batch has the source's arrays and "index".
      indices: of the examples; all by default.
      batch: examples at a time, rounded up to a multiple of the devices that a batch is split over.
      layout: how arrays are sharded; None: one device.
      threads: examples that are read at the same time.

    Returns:
      A function of a model's values that gives the totals by name, float64.
    """
    graph, _ = nnx.split(model)
    wanted = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    shards = layout.shards("batch") if layout else 1
    rows = -(-min(batch, len(wanted)) // shards) * shards
    by_batch, replicated = _shardings(layout)
    spec = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_batch)
        for name, leaf in (batch_spec(source.spec, rows) | {_COUNTED: jax.ShapeDtypeStruct((rows,), bool)}).items()
    }
    held = held_rows(by_batch, rows)

    def sums(values: PyTree, batch: Batch) -> dict[str, Float[Array, "..."]]:
        counted: Bool[Array, " rows"] = batch.pop(_COUNTED)
        model = nnx.merge(graph, values)
        model.eval()

        def total(each: Float[Array, "rows ..."]) -> Float[Array, "..."]:
            return jnp.where(counted.reshape(-1, *(1,) * (each.ndim - 1)), each, 0).astype(jnp.float32).sum(0)

        return {name: total(each) for name, each in measure(model, batch).items()}

    compiled = jax.jit(sums, out_shardings=replicated)

    def totals(values: PyTree) -> Totals:
        parts = []
        for start in range(0, len(wanted), rows):
            position = start + held
            read = read_rows(source, wanted[np.minimum(position, len(wanted) - 1)], threads)
            read[_COUNTED] = position < len(wanted)
            parts.append(compiled(values, to_devices(read, spec, held)))
        # Fetched once, so that the accelerator never waits for the host between batches.
        found = hosts.fetch(parts)
        return {name: np.asarray(np.sum([part[name] for part in found], axis=0, dtype=np.float64)) for name in found[0]}

    return totals


def row_keys(seed: int, index: Int[Array, " rows"]) -> Key[Array, " rows"]:
    """A random key for each example, from its index."""
    return jax.vmap(lambda each: jax.random.fold_in(jax.random.key(seed), each))(index)


def _shardings(layout: Layout | None):
    if layout is not None:
        return layout.sharding(("batch",)), layout.sharding()
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("batch",))
    return (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")),
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )
