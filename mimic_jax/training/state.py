"""What a training run carries from step to step, born sharded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from mimic_jax.training.mesh import Rules, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: updates made so far. params: nested dicts of arrays. opt_state: Optax's."""

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


def init_state(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    mesh: Mesh,
    rules: Rules,
) -> tuple[nnx.GraphDef, TrainState]:
    """A fresh state, each parameter made where it lies, and the graph that makes a model of its parameters again.

    Returns:
      graph: `nnx.merge(graph, state.params)` is the model.
      state: sharded over the mesh by the rules; the optimizer's moments lie as their parameters do.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
    replicated = sharding(mesh, rules)
    param_shardings = nnx.to_pure_dict(
        nnx.map_state(lambda _, parameter: sharding(mesh, rules, parameter.get_metadata()["axes"]), abstract)
    )

    def init(key: PRNGKeyArray) -> TrainState:
        params = nnx.to_pure_dict(nnx.state(make_model(nnx.Rngs(key))))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shapes = jax.eval_shape(init, key)
    shardings = TrainState(
        replicated,
        param_shardings,
        optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, place: place,
            shapes.opt_state,
            param_shardings,
            transform_non_params=lambda _: replicated,
        ),
    )
    return graph, jax.jit(init, out_shardings=shardings)(key)
