"""One update: a pure function under one jit, with explicit shardings and donated state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mimic_jax.data.augment import Augmentation, augment
from mimic_jax.models import completion
from mimic_jax.nn.layout import Layout
from mimic_jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, PyTree, PRNGKeyArray], tuple[TrainState, Metrics]]


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    augmentation: Augmentation,
    layout: Layout,
    shapes: TrainState,
    *,
    accumulate: int = 1,
    average_decay: float = 0.0,
    skip_at_most: int = 0,
) -> Step:
    """Builds `(state, batch, key) → (state, metrics)` for any model that completes masked views.

    `key` is the run's key: the step folds its own number in, so that a resumed run draws what it would have drawn.
    The state passed in is donated.

    Args:
      shapes: of the state, with its shardings.
      accumulate: in how many parts the batch is computed, one after the other; the gradient is that of the whole.
      average_decay: of the state's average of parameters, where it keeps one: average ← decay · average +
        (1 − decay) · parameters.
      skip_at_most: a step whose loss or gradient is not finite changes nothing. After one more of them than this no
        step does: what the parameters were before is still there when the host finds out.
    """

    def mean_loss(params: PyTree, views: tuple[Array, ...], visible: Array) -> Float[Array, ""]:
        return completion.loss(nnx.merge(graph, params), views, visible).mean()

    def train_step(state: TrainState, batch: PyTree, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        key_augment, key_mask = jax.random.split(jax.random.fold_in(key, state.step))
        views = augment(key_augment, batch, augmentation)
        visible = completion.random_visible(key_mask, views[0], nnx.merge(graph, state.params).sizes)
        loss, gradients = _value_and_gradient(mean_loss, state.params, (views, visible), accumulate, layout)
        gradients = jax.lax.with_sharding_constraint(gradients, places.params)
        norm = optax.tree_utils.tree_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params, state.average, 1 - average_decay) if state.average else None

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        going = state.skipped <= skip_at_most
        params, opt_state, average = jax.tree.map(
            lambda new, old: jnp.where(finite & going, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.average),
        )
        metrics = {
            "loss": loss,
            "learning_rate": schedule(state.step - state.skipped),
            "gradient_norm": norm,
            "parameter_norm": optax.tree_utils.tree_norm(params),
            "skipped": state.skipped + (going & ~finite),
            "nonfinite_step": jnp.where(going & ~finite, state.step + 1, state.nonfinite_step),
        }
        counts = metrics["skipped"], metrics["nonfinite_step"]
        return TrainState(state.step + 1, params, opt_state, average, *counts), metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    everywhere = layout.sharding()
    return jax.jit(
        train_step,
        in_shardings=(places, layout.sharding(("batch",)), everywhere),
        out_shardings=(places, everywhere),
        donate_argnums=0,
    )


def _value_and_gradient(function, params, rows, parts, layout):
    """Of the mean of `function` over equal parts of the rows, one after the other."""
    if parts == 1:
        return jax.value_and_grad(function)(params, *rows)

    def part_of(array):
        # Each part takes every so-manieth row, so that no row changes its device.
        cut = array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
        return layout.place(cut, (None, "batch", *(None,) * (cut.ndim - 2)))

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(function)(params, *part)), None

    nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, nothing, jax.tree.map(part_of, rows))
    return jax.tree.map(lambda each: each / parts, total)
