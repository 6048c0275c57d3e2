"""Pre-training on the devices of one host, from a config to a workdir."""

import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.augment import Augmentation
from mimic_jax.data.pairs import batches
from mimic_jax.models.croco import CroCo, CroCoSizes
from mimic_jax.training import checkpoint
from mimic_jax.training.mesh import make_mesh, sharding
from mimic_jax.training.metrics import MetricsFile
from mimic_jax.training.optimizer import adamw, learning_rate
from mimic_jax.training.state import init_state
from mimic_jax.training.step import make_train_step


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains until `config.steps`, from the newest checkpoint in the workdir if there is one.

    Args:
      config: as in configs/; every field is used.
      workdir: gets `checkpoints/`, `metrics.jsonl` and `config.json`.

    Raises:
      InputError: a field of the config, the dataset or the workdir cannot be used, or the loss is no longer finite.
    """
    sizes, augmentation = check(config)
    dataset = records.open_dataset(config.data.train)
    fingerprint = dataset.fingerprint()
    rules = config.axis_rules.to_dict()
    mesh = make_mesh(config.mesh, rules, config.batch_size)

    schedule = learning_rate(
        config.optimizer.base_learning_rate,
        config.batch_size,
        config.optimizer.warmup_steps,
        config.optimizer.schedule_steps,
    )
    optimizer = adamw(
        schedule, b1=config.optimizer.b1, b2=config.optimizer.b2, weight_decay=config.optimizer.weight_decay
    )
    key_init, key_run = jax.random.split(jax.random.key(config.seed))
    dtype = jnp.dtype(config.compute_dtype)
    graph, state = init_state(lambda rngs: CroCo(sizes, rngs=rngs, dtype=dtype), optimizer, key_init, mesh, rules)
    batch_sharding = sharding(mesh, rules, ("batch",))
    train_step = make_train_step(graph, optimizer, schedule, augmentation, state, batch_sharding, sharding(mesh, rules))

    # Nothing is written before all of the config is known to work.
    checkpoint.claim_workdir(workdir, config.to_dict())
    with checkpoint.open_checkpoints(workdir, config.keep_checkpoints) as checkpoints:
        state, first_step = checkpoint.restore(checkpoints, state, fingerprint)
        if first_step >= config.steps:
            print(f"{workdir}: already trained for {first_step} steps")
            return
        if first_step:
            print(f"{workdir}: carrying on from step {first_step}")
        if len(dataset) < config.batch_size:
            print(f"warning: {dataset.folder} has {len(dataset)} pairs, fewer than one batch of {config.batch_size}")
        data = batches(
            dataset,
            size=config.data.size,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
        )
        metrics_file = MetricsFile(workdir / checkpoint.METRICS, first_step, config.batch_size)
        with _progress() as progress:
            task = progress.add_task("pre-train", total=config.steps, completed=first_step, status="compiling")

            def report(step: int, metrics: dict) -> None:
                line = metrics_file.write(step, metrics)
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
            for step in range(first_step + 1, config.steps + 1):
                batch = {
                    name: jax.make_array_from_process_local_data(batch_sharding, views)
                    for name, views in next(data).items()
                }
                state, metrics = train_step(state, batch, key_run)
                if late:
                    report(*late)
                    late = None
                if step % config.checkpoint_every == 0 or step == config.steps:
                    # Saving waits for the step anyway, and a state that came of infinities is not worth keeping.
                    report(step, metrics)
                    checkpoint.save(checkpoints, step, state, fingerprint, config.to_dict())
                elif step % config.log_every == 0 or step == 1:
                    late = (step, metrics)
        metrics_file.close()


def check(config: ConfigDict) -> tuple[CroCoSizes, Augmentation]:
    """Checks what can be checked of a config before anything is built, and gives what it describes.

    Raises:
      InputError: names the field that is missing or cannot be used.
    """
    try:
        return _check(config)
    except (AttributeError, KeyError) as error:
        raise InputError(f"--config: the file lacks a field: {' '.join(str(error).split())}") from error


def _check(config: ConfigDict) -> tuple[CroCoSizes, Augmentation]:
    try:
        sizes = CroCoSizes(**config.model)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.model: {error}") from error
    for field in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "data.threads"):
        value = operator.attrgetter(field)(config)
        if value < 1:
            raise InputError(f"config.{field}={value} must be at least 1")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"config.seed={config.seed} must be from 0 to 2³² − 1")
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.compute_dtype={config.compute_dtype!r} must be float32 or bfloat16")
    if config.data.crop % sizes.patch_size or not 0 < config.data.crop <= config.data.size:
        raise InputError(
            f"config.data.crop={config.data.crop} must be a multiple of config.model.patch_size={sizes.patch_size} "
            f"and at most config.data.size={config.data.size}"
        )
    patches = (config.data.crop // sizes.patch_size) ** 2
    if not 0 < sizes.visible(patches) < patches:
        raise InputError(
            f"config.model.mask_ratio={sizes.mask_ratio} of {patches} patches leaves {sizes.visible(patches)} visible; "
            "some must be hidden and some not"
        )
    if not 0 <= config.optimizer.warmup_steps < config.optimizer.schedule_steps:
        raise InputError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be below "
            f"config.optimizer.schedule_steps={config.optimizer.schedule_steps} (config.steps={config.steps})"
        )
    if not config.data.train:
        raise InputError("config.data.train is not set: give --config.data.train=DATASET, a folder that mine made")
    return sizes, Augmentation(config.data.crop, config.data.jitter, config.data.swap)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[status]}"))
