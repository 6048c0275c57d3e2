"""Pre-training on the devices of one host, from a config to a workdir."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, Mixture, all_examples, hold_out, open_mixture
from mimic_jax.data.pairs import batches
from mimic_jax.interop.load import load
from mimic_jax.interop.weights import Weights
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.training import checkpoint
from mimic_jax.training.evaluation import make_evaluation
from mimic_jax.training.experiment import check, total_steps
from mimic_jax.training.mesh import make_mesh, sharding
from mimic_jax.training.metrics import Metrics
from mimic_jax.training.optimizer import adamw, learning_rate
from mimic_jax.training.state import check_start, init_state, start_from
from mimic_jax.training.step import make_train_step


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains until `config.steps` or `config.epochs`, from the newest checkpoint in the workdir if there is one.

    Args:
      config: as in configs/; every field is used.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `config.json` and `data.json`.

    Raises:
      InputError: a field of the config, the dataset or the workdir cannot be used, or the loss is no longer finite.
    """
    experiment = check(config)
    initial = load(config.init) if config.init and not checkpoint.has_checkpoint(workdir) else None
    config = _with_known_grid(config, workdir, initial)
    experiment = check(config)
    if initial:
        check_start(initial, config.objective, experiment.sizes)
    mixture = open_mixture(config.data.train, "config.data.train")
    fingerprint = mixture.fingerprint()
    examples, held_out = _split(config, mixture)
    steps, warmup_steps, schedule_steps = total_steps(config, len(examples) * config.batch_size // experiment.records)
    rules = config.axis_rules.to_dict()
    mesh = make_mesh(config.mesh.to_dict(), rules, experiment.records)

    schedule = learning_rate(config.optimizer.base_learning_rate, config.batch_size, warmup_steps, schedule_steps)
    optimizer = adamw(
        schedule, b1=config.optimizer.b1, b2=config.optimizer.b2, weight_decay=config.optimizer.weight_decay
    )
    key_init, key_run = jax.random.split(jax.random.key(config.seed))
    dtype = jnp.dtype(config.compute_dtype)
    graph, state = init_state(
        lambda rngs: build(config.objective, experiment.sizes, rngs, dtype), optimizer, key_init, mesh, rules
    )
    batch_sharding = sharding(mesh, rules, ("batch",))
    train_step = make_train_step(
        graph, optimizer, schedule, experiment.augmentation, state, batch_sharding, sharding(mesh, rules)
    )
    if initial:
        state, taken = start_from(state, initial, config.objective)

    # Nothing is written before all of the config is known to work.
    checkpoint.claim_workdir(workdir, config.to_dict(), checkpoint.describe_data(mixture))
    with checkpoint.open_checkpoints(workdir, config.keep_checkpoints) as checkpoints:
        state, first_step = checkpoint.restore(checkpoints, state, fingerprint)
        if first_step >= steps:
            print(f"{workdir}: already trained for {first_step} steps")
            return
        if first_step:
            print(f"{workdir}: carrying on from step {first_step}")
        elif initial:
            print(f"{config.init}: {taken}")
        # The rate rises to the end of the warm-up and falls from there.
        peak = float(schedule(min(steps, warmup_steps)))
        print(_plan(config, experiment, state, examples, held_out, steps, peak))
        if steps <= warmup_steps:
            print(
                f"warning: the run ends within the warm-up of {warmup_steps} steps: the learning rate stays below its "
                "peak; set config.optimizer.warmup_steps and schedule_steps for a short run"
            )
        if len(examples) < experiment.records:
            print(
                f"warning: config.data.train has {len(examples)} pairs, fewer than the {experiment.records} of a step"
            )
        data = batches(
            examples,
            size=experiment.size,
            batch_size=experiment.records,
            seed=config.seed,
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
        )
        evaluation = make_evaluation(config, experiment, nnx.merge(graph, state.params), examples, held_out)
        metrics = Metrics(workdir, first_step)
        with _progress() as progress:
            task = progress.add_task("pre-train", total=steps, completed=first_step, status="compiling")
            last_step, last_time = first_step, time.monotonic()

            def report(step: int, found: dict) -> None:
                """Waits for the metrics of `step` if need be, adds the speed since the last call, and tells them."""
                nonlocal last_step, last_time
                line = {name: float(value) for name, value in found.items()}
                now = time.monotonic()
                line["pairs_per_second"] = (step - last_step) * experiment.records / (now - last_time)
                last_step, last_time = step, now
                metrics.write(step, line)
                if not np.isfinite([line["loss"], line["gradient_norm"]]).all():
                    raise InputError(
                        f"{workdir}: at step {step} the loss is {line['loss']}, its gradient's norm "
                        f"{line['gradient_norm']}; the newest checkpoint is of step {checkpoints.latest_step()}; "
                        "try a lower config.optimizer.base_learning_rate in another --workdir"
                    )
                status = f"loss {line['loss']:.3f}, {line['pairs_per_second']:.0f} pairs/s"
                progress.update(task, completed=step, status=status)

            # Metrics are fetched a step late: while the host waits for them, the next step is already under way.
            late = None
            for step in range(first_step + 1, steps + 1):
                batch = {
                    name: jax.make_array_from_process_local_data(batch_sharding, views)
                    for name, views in next(data).items()
                }
                state, found = train_step(state, batch, key_run)
                if late:
                    report(*late)
                    late = None
                saves = step % config.checkpoint_every == 0 or step == steps
                evaluates = bool(evaluation) and (step % config.eval.every == 0 or step == steps)
                if saves or evaluates:
                    # Both wait for the step anyway, and a state that came of infinities is not worth keeping.
                    report(step, found)
                elif step % config.log_every == 0 or step == 1:
                    late = (step, found)
                if evaluates:
                    progress.update(task, status="evaluating")
                    evaluation(step, state.params, metrics)
                    last_time = time.monotonic()
                if saves:
                    checkpoint.save(checkpoints, step, state, fingerprint, config.to_dict())
        metrics.close()
    print(f"{workdir}: trained for {steps} steps")


def _plan(config, experiment, state, examples, held_out, steps, peak) -> str:
    """One line about what is going to happen."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    apart = f"{len(held_out)} pairs to evaluate on" if held_out is not None else "none to evaluate on"
    return (
        f"{config.objective}, {parameters / 1e6:.1f} M parameters: {len(examples)} pairs to train on, {apart}; "
        f"{steps} steps of {experiment.records} pairs, learning rate up to {peak:.3g}"
    )


def _with_known_grid(config: ConfigDict, workdir: Path, initial: Weights | None) -> ConfigDict:
    """The config with the grid of the added positions of the run that is resumed, or of the weights it begins from."""
    grid = checkpoint.position_grid(workdir) or (initial and initial.sizes.position_grid)
    if not grid or config.model.get("position_grid") or ROPE_BASES[config.model.get("positions", Sizes.positions)]:
        return config
    config = ConfigDict(config.to_dict())
    config.model.position_grid = tuple(grid)
    return config


def _split(config: ConfigDict, mixture: Mixture) -> tuple[Examples, Examples | None]:
    """What is trained on, and what is held out of it, or comes from elsewhere, to evaluate on."""
    if config.eval.data:
        return all_examples(mixture), all_examples(open_mixture(config.eval.data, "config.eval.data"))
    examples, held_out = hold_out(mixture, config.eval.held_out)
    if not len(examples):
        raise InputError(
            f"config.eval.held_out={config.eval.held_out} holds out all scenes of config.data.train; "
            "lower it, or give --config.eval.data=DATASET"
        )
    if config.eval.held_out and not len(held_out):
        print(
            "warning: config.data.train has a single scene, so nothing is held out and nothing is evaluated; "
            "give --config.eval.data=DATASET"
        )
    return examples, held_out if len(held_out) else None


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[status]}"))
