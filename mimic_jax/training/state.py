"""What a training run carries from step to step, created sharded."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from mimic_jax.interop.weights import Weights
from mimic_jax.nn.layout import Layout, axes_of
from mimic_jax.nn.rngs import make_rngs
from mimic_jax.training.mesh import check_sharding
from mimic_jax.training.optimizer import Path, path_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Or, leaf for leaf, the shapes or the shardings of one.

    step: batches seen so far, an int32 scalar.
    params: nested dicts of arrays.
    variables: nested dicts of what a model keeps beside parameters: running statistics, random streams.
    opt_state: Optax's, of the parameters that are trained.
    ema_params: exponential moving average of the parameters; None where none is kept.
    skipped: steps without a finite loss and gradient, which changed nothing else here; an int32 scalar.
    """

    step: PyTree
    params: PyTree
    variables: PyTree
    opt_state: PyTree
    ema_params: PyTree
    skipped: PyTree

    def values(self) -> PyTree:
        """All values of the model as it is evaluated: with the average of its parameters where one is kept."""
        return join(self.params if self.ema_params is None else self.ema_params, self.variables)


@dataclasses.dataclass(frozen=True)
class Abstract:
    """A model without arrays. params, variables: shapes and metadata, by path."""

    graph: nnx.GraphDef
    params: Mapping[Path, nnx.Variable]
    variables: Mapping[Path, nnx.Variable]

    @classmethod
    def of(cls, make_model: Callable[[nnx.Rngs], nnx.Module]) -> "Abstract":
        """The model that `make_model` makes, traced."""
        graph, params, variables = nnx.split(nnx.eval_shape(lambda: make_model(make_rngs(0))), nnx.Param, ...)
        return cls(graph, dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(variables)))


def join(*trees: PyTree) -> PyTree:
    """Nested dicts with different leaves as one."""
    flat: dict = {}
    for tree in trees:
        flat |= nnx.traversals.flatten_mapping(tree)
    return nnx.traversals.unflatten_mapping(flat)


def select(tree: PyTree, paths: Mapping[Path, object] | set[Path]) -> PyTree:
    """The leaves of nested dicts at some paths."""
    return nnx.traversals.unflatten_mapping(
        {path: leaf for path, leaf in nnx.traversals.flatten_mapping(tree).items() if path in paths}
    )


def make_init(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    abstract: Abstract,
    trained: set[Path],
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    ema: bool = False,
) -> tuple[TrainState, Callable[[jax.Array], TrainState]]:
    """How a fresh state is made, each array where it is sharded, so that no device ever holds more than its shard.

    Args:
      abstract: of the model that `make_model` makes.
      trained: paths of the parameters that the optimizer sees.
      ema: whether an average of the parameters is kept.

    Returns:
      shapes: the state's shapes, types and shardings. The optimizer's moments are sharded as their parameters are.
      init: `init(key)` is the state.

    Raises:
      InputError: a parameter cannot be sharded as the layout says.
    """
    for path, parameter in abstract.params.items():
        check_sharding(layout, path_name(path), parameter.get_value().shape, axes_of(parameter))
    replicated = layout.sharding()

    def shardings(variables: Mapping[Path, nnx.Variable]) -> PyTree:
        return nnx.traversals.unflatten_mapping(
            {path: layout.sharding(axes_of(variable)) for path, variable in variables.items()}
        )

    def init(key: jax.Array) -> TrainState:
        params, variables = map(nnx.to_pure_dict, nnx.state(make_model(make_rngs(key)), nnx.Param, ...))
        zero = jnp.zeros((), jnp.int32)
        opt_state = optimizer.init(select(params, trained))
        return TrainState(zero, params, variables, opt_state, params if ema else None, zero)

    shapes, of_params = jax.eval_shape(init, jax.random.key(0)), shardings(abstract.params)
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        select(of_params, trained),
        transform_non_params=lambda _: replicated,
    )
    of_state = TrainState(
        replicated, of_params, shardings(abstract.variables), of_optimizer, of_params if ema else None, replicated
    )
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, of_state
    )
    return shapes, jax.jit(init, out_shardings=of_state)


def start_from(state: TrainState, weights: Weights, modules: tuple[str, ...]) -> tuple[TrainState, str]:
    """A fresh state with parameters taken from weights, each sharded as the state's own.

    Args:
      weights: of sizes that go with the model's.
      modules: the top-level modules whose parameters are taken where the weights have them.

    Returns:
      The state, and one line about which parameters were taken and which start fresh.
    """
    flat, given = (nnx.traversals.flatten_mapping(params) for params in (state.params, weights.params))
    fresh = []
    for path, parameter in flat.items():
        if path in given and path[0] in modules:
            whole = np.asarray(given[path], parameter.dtype)  # in every process; each device takes its shard
            flat[path] = jax.make_array_from_callback(whole.shape, parameter.sharding, whole.__getitem__)
        else:
            fresh.append(path)
    message = f"starts from {len(flat) - len(fresh)} of {len(flat)} parameters"
    if fresh:
        message += f"; fresh: {', '.join(sorted({str(path[0]) for path in fresh}))}"
    params = nnx.traversals.unflatten_mapping(flat)
    ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema_params=ema_params), message
