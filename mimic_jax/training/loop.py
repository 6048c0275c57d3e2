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
from mimic_jax.models.kinds import build
from mimic_jax.training import checkpoint
from mimic_jax.training.evaluation import make_evaluation
from mimic_jax.training.experiment import check, total_steps
from mimic_jax.training.mesh import make_mesh, sharding
from mimic_jax.training.metrics import Metrics
from mimic_jax.training.optimizer import adamw, learning_rate
from mimic_jax.training.state import init_state, start_from
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
    mixture = open_mixture(config.data.train, "config.data.train")
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
    initial = load(config.init) if config.init else None

    # Nothing is written before all of the config is known to work.
    if initial:
        state, taken = start_from(state, initial, config.objective, experiment.sizes)
    checkpoint.claim_workdir(workdir, config.to_dict(), checkpoint.describe_data(mixture))
    with checkpoint.open_checkpoints(workdir, config.keep_checkpoints) as checkpoints:
        state, first_step = checkpoint.restore(checkpoints, state, mixture.fingerprint())
        if first_step >= steps:
            print(f"{workdir}: already trained for {first_step} steps")
            return
        if first_step:
            print(f"{workdir}: carrying on from step {first_step}")
        elif initial:
            print(f"{config.init}: {taken}")
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
                    checkpoint.save(checkpoints, step, state, mixture.fingerprint(), config.to_dict())
        metrics.close()


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
