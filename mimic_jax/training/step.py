"""One update: a pure function under one jit, with explicit shardings and donated state."""

from collections.abc import Callable

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mimic_jax.data.augment import Augmentation, augment
from mimic_jax.models import completion
from mimic_jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, PyTree, PRNGKeyArray], tuple[TrainState, Metrics]]


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    augmentation: Augmentation,
    state: TrainState,
    batch_sharding: NamedSharding,
    replicated: NamedSharding,
) -> Step:
    """Builds `(state, batch, key) → (state, metrics)` for any model that completes masked views.

    `key` is the run's key: the step folds its own number in, so that a resumed run draws what it would have drawn.
    The state passed in is donated. `state` here only tells the shardings.
    """

    def train_step(state: TrainState, batch: PyTree, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        key_augment, key_mask = jax.random.split(jax.random.fold_in(key, state.step))
        views = augment(key_augment, batch, augmentation)

        def loss_of(params: PyTree) -> Float[Array, ""]:
            model = nnx.merge(graph, params)
            visible = completion.random_visible(key_mask, views[0], model.sizes)
            return completion.loss(model, views, visible).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "learning_rate": schedule(state.step),
            "gradient_norm": optax.tree_utils.tree_norm(gradients),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding, replicated),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )
