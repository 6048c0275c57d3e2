"""One update: a pure function under one jit, with explicit shardings and donated state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from mimic_jax.nn.layout import Layout
from mimic_jax.task import Batch, Rows, Task
from mimic_jax.training.optimizer import Path
from mimic_jax.training.state import Abstract, TrainState, join, select

# Names in the metrics that a task cannot log under.
_RESERVED = {"loss", "weight", "learning_rate", "gradient_norm", "parameter_norm", "skipped"}

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    abstract: Abstract,
    trained: set[Path],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    layout: Layout,
    shapes: TrainState,
    *,
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
    max_skipped: int = 0,
) -> Step:
    """Builds `(state, batch, key) → (state, metrics)`.

    `key` is the run's key: the step folds its own number in, so that a resumed run draws what it would have drawn.
    The state passed in is donated.

    Args:
      abstract: of the task's model.
      trained: paths of the parameters that change. The others have no gradient: no backward pass leads to them only.
      shapes: of the state, with its shardings.
      accumulation_steps: parts that the batch is computed in, one after the other; the gradient is that of the whole.
        Variables, such as running statistics, are updated by each part in turn.
      ema_decay: see `ema_decay_of`.
      max_skipped: a step whose loss or gradient is not finite changes nothing. After more of them than this no step
        changes anything: the parameters before the first of them are still there when the host finds out.
    """

    def sums(params: PyTree, fixed: PyTree, variables: PyTree, rows: Rows) -> tuple[Array, tuple[dict, PyTree]]:
        """Σ loss · weight; the sums of the weights and of the logged numbers; and the model's new variables."""
        model = nnx.merge(abstract.graph, join(params, fixed, variables))
        model.train()
        terms = task.loss(model, rows)
        if reserved := _RESERVED & terms.logged.keys():
            raise ValueError(f"Terms.logged of the task {task.name} has {sorted(reserved)}, which the step logs itself")
        weight = jax.lax.stop_gradient(terms.weight).astype(jnp.float32)

        def weighted(values: Float[Array, " rows"]) -> Float[Array, ""]:
            return (values.astype(jnp.float32) * weight).sum()

        logged = {"loss": weighted(terms.loss)} | {name: weighted(each) for name, each in terms.logged.items()}
        variables = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return logged["loss"], ({"weight": weight.sum()} | logged, variables)

    def train_step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        rows = task.prepare(jax.random.fold_in(key, state.step), batch)
        params, fixed = select(state.params, trained), select(state.params, abstract.params.keys() - trained)
        gradients, total, variables = _accumulate(
            sums, params, fixed, state.variables, rows, accumulation_steps, layout
        )
        # Without any weight there is nothing to learn from: the loss is 0, and so is its gradient.
        divisor = jnp.maximum(total.pop("weight"), jnp.finfo(jnp.float32).tiny)
        means = {name: each / divisor for name, each in total.items()}
        gradients = jax.tree.map(lambda each: each / divisor, gradients)
        gradients = jax.lax.with_sharding_constraint(gradients, select(shardings.params, trained))
        norm = optax.tree_utils.tree_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
        params = join(optax.apply_updates(params, updates), fixed)
        ema_params = state.ema_params
        if ema_params is not None:
            decay = ema_decay_of(ema_decay, state.step - state.skipped)
            averaged = jax.tree.map(
                lambda ema, new: decay * ema + (1 - decay) * new, select(ema_params, trained), select(params, trained)
            )
            ema_params = join(averaged, fixed)  # a frozen parameter is its own average, to the bit

        finite = jnp.isfinite(means["loss"]) & jnp.isfinite(norm)
        active = state.skipped <= max_skipped
        params, variables, opt_state, ema_params = jax.tree.map(
            lambda new, old: jnp.where(finite & active, new, old),
            (params, variables, opt_state, ema_params),
            (state.params, state.variables, state.opt_state, state.ema_params),
        )
        skipped = state.skipped + (active & ~finite)
        metrics = means | {
            "learning_rate": schedule(state.step - state.skipped),
            "gradient_norm": norm,
            "parameter_norm": optax.tree_utils.tree_norm(params),
            "skipped": skipped,
        }
        return TrainState(state.step + 1, params, variables, opt_state, ema_params, skipped), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    replicated = layout.sharding()
    return jax.jit(
        train_step,
        in_shardings=(shardings, layout.sharding(("batch",)), replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )


def ema_decay_of(decay: float, updates: Int[Array, ""] | int) -> Float[Array, ""]:
    """The decay of the average at an update, counted from 0: min(decay, (1 + n) / (10 + n)).

    It rises to `decay`, so that the average of a short run is not a mixture with the initial parameters (as in
    TensorFlow's ExponentialMovingAverage with num_updates).
    """
    return jnp.minimum(decay, (1 + updates) / (10 + updates))


def _accumulate(sums, params, fixed, variables, rows, parts, layout: Layout):
    """Gradient of the sum over the rows, the sums, and the new variables; over equal parts, one after the other."""
    differentiate = jax.grad(sums, has_aux=True)
    if parts == 1:
        gradients, (total, variables) = differentiate(params, fixed, variables, rows)
        return gradients, total, variables

    def part_of(array):
        # Every n-th row goes into a part, so that no row changes its device.
        cut = array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
        return layout.constrain(cut, (None, "batch", *(None,) * (cut.ndim - 2)))

    def add(carry, part):
        gradients, total, variables = carry
        more_gradients, (more, variables) = differentiate(params, fixed, variables, part)
        return (*jax.tree.map(jnp.add, (gradients, total), (more_gradients, more)), variables), None

    rows = jax.tree.map(part_of, rows)
    first = jax.tree.map(lambda array: array[0], rows)
    _, (shapes, _) = jax.eval_shape(differentiate, params, fixed, variables, first)
    zeros = jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    (gradients, total, variables), _ = jax.lax.scan(add, (*zeros, variables), rows)
    return gradients, total, variables
