"""What a training run carries from step to step, born sharded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from mimic_jax.command import InputError
from mimic_jax.interop.weights import Weights
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.layout import Layout
from mimic_jax.nn.rngs import make_rngs
from mimic_jax.training.mesh import check_placement


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Or, leaf for leaf, the shapes or the shardings of one.

    step: batches seen so far, an int32 scalar.
    params: nested dicts of arrays.
    opt_state: Optax's.
    average: of the parameters over steps, like them; None where none is kept.
    skipped: how many of the steps had no finite loss and gradient, and changed nothing else here; an int32 scalar.
    nonfinite_step: the last of those, counted from 1; 0 for none; an int32 scalar.
    """

    step: PyTree
    params: PyTree
    opt_state: PyTree
    average: PyTree
    skipped: PyTree
    nonfinite_step: PyTree


def make_init(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    average: bool = False,
) -> tuple[nnx.GraphDef, TrainState, Callable[[PRNGKeyArray], TrainState]]:
    """How a fresh state is made, each parameter where it lies, so that no device ever holds more than its part.

    Args:
      average: whether an average of the parameters is kept.

    Returns:
      graph: `nnx.merge(graph, state.params)` is the model.
      shapes: the state's shapes, types and shardings. The optimizer's moments lie as their parameters do.
      init: `init(key)` is the state.

    Raises:
      InputError: a parameter cannot lie as the layout says.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make_model(make_rngs(0))))
    for path, parameter in nnx.to_flat_state(abstract):
        axes = parameter.get_metadata()["axes"]
        check_placement(layout, ".".join(map(str, path)), parameter.get_value().shape, axes)
    everywhere = layout.sharding()
    of_params = nnx.to_pure_dict(
        nnx.map_state(lambda _, parameter: layout.sharding(parameter.get_metadata()["axes"]), abstract)
    )

    def init(key: PRNGKeyArray) -> TrainState:
        params = nnx.to_pure_dict(nnx.state(make_model(make_rngs(key))))
        none = jnp.zeros((), jnp.int32)
        return TrainState(none, params, optimizer.init(params), params if average else None, none, none)

    shapes = jax.eval_shape(init, jax.random.key(0))
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        shapes.opt_state,
        of_params,
        transform_non_params=lambda _: everywhere,
    )
    places = TrainState(everywhere, of_params, of_optimizer, of_params if average else None, everywhere, everywhere)
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    return graph, shapes, jax.jit(init, out_shardings=places)


def check_start(weights: Weights, kind: str, sizes: Sizes) -> None:
    """Checks that a model can begin from weights.

    Args:
      kind, sizes: of the model that is to be trained.

    Raises:
      InputError: names every size that differs, and the flags that make them equal.
    """
    shared = ["encoder_width", "encoder_depth", "encoder_heads"]
    shared += ["patch_size", "positions", "class_token", "position_grid"]
    if kind == weights.kind:
        shared += ["decoder_width", "decoder_depth", "decoder_heads"]
    different = [field for field in shared if getattr(weights.sizes, field) != getattr(sizes, field)]
    if {"positions", "position_grid"} <= set(different):  # other positions have another grid, or none
        different.remove("position_grid")
    if different:
        flags = " ".join(f"--config.model.{field}={getattr(weights.sizes, field)}" for field in different)
        raise InputError(f"config.init: these weights are of another model than config.model; give {flags}")


def start_from(state: TrainState, weights: Weights, kind: str) -> tuple[TrainState, str]:
    """A fresh state with parameters taken from weights, each laid out as the state's own.

    The encoder is always taken. The rest is where the weights are of the same kind of model: a decoder of another
    objective does something else.

    Args:
      weights: of sizes that go with the model's, see `check_start`.
      kind: of the model that is trained.

    Returns:
      The state, and one line that says what was taken and what starts fresh.
    """
    flat, given = (nnx.traversals.flatten_mapping(params) for params in (state.params, weights.params))
    fresh = []
    for path, parameter in flat.items():
        if path in given and (kind == weights.kind or path[0] == "encoder"):
            whole = np.asarray(given[path], parameter.dtype)  # in every process, of which each takes what it holds
            flat[path] = jax.make_array_from_callback(whole.shape, parameter.sharding, whole.__getitem__)
        else:
            fresh.append(path)
    said = f"begins from {len(flat) - len(fresh)} of {len(flat)} parameters"
    if fresh:
        said += f"; fresh: {', '.join(sorted({path[0] for path in fresh}))}"
    params = nnx.traversals.unflatten_mapping(flat)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, average=average), said
