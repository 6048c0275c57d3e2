"""What a training run carries from step to step, born sharded."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from mimic_jax.command import InputError
from mimic_jax.interop.weights import Weights
from mimic_jax.models.sizes import Sizes
from mimic_jax.training.mesh import Rules, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Or, leaf for leaf, the shapes or the shardings of one.

    step: updates made so far, an int32 scalar. params: nested dicts of arrays. opt_state: Optax's.
    """

    step: PyTree
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


def start_from(state: TrainState, weights: Weights, kind: str, sizes: Sizes) -> tuple[TrainState, str]:
    """A fresh state with parameters taken from weights, each laid out as the state's own.

    The encoder is always taken. The rest is where the weights are of the same kind of model: a decoder of another
    objective does something else.

    Args:
      kind, sizes: of the model that is trained.

    Returns:
      The state, and one line that says what was taken and what starts fresh.

    Raises:
      InputError: the weights are of a model with other sizes.
    """
    shared = ["encoder_width", "encoder_depth", "encoder_heads", "patch_size", "positions", "class_token"]
    if kind == weights.kind:
        shared += ["decoder_width", "decoder_depth", "decoder_heads"]
    for field in shared:
        theirs, ours = getattr(weights.sizes, field), getattr(sizes, field)
        if theirs != ours:
            raise InputError(
                f"config.init: its {field} is {theirs!r}, config.model.{field} is {ours!r}; make them equal"
            )
    flat, given = (nnx.traversals.flatten_mapping(params) for params in (state.params, weights.params))
    fresh = []
    for path, parameter in flat.items():
        if path in given and (kind == weights.kind or path[0] == "encoder"):
            if given[path].shape != parameter.shape:
                raise InputError(
                    f"config.init: its {'.'.join(path)} has shape {given[path].shape}, {parameter.shape} is needed"
                )
            flat[path] = jax.device_put(given[path], parameter.sharding)
        else:
            fresh.append(path)
    said = f"begins from {len(flat) - len(fresh)} of {len(flat)} parameters"
    if fresh:
        said += f"; fresh: {', '.join(sorted({path[0] for path in fresh}))}"
    params = nnx.traversals.unflatten_mapping(flat)
    return dataclasses.replace(state, params=params), said
