"""A run that is about to be trained: a config with its data opened, its lengths known, its parts built."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from mimic_jax import hosts
from mimic_jax.command import InputError
from mimic_jax.data.mixture import Examples, Mixture, all_examples, hold_out, open_mixture
from mimic_jax.data.order import examples_in_step
from mimic_jax.data.pairs import batches, describe
from mimic_jax.data.prefetch import Prefetch
from mimic_jax.interop.load import load
from mimic_jax.interop.weights import Weights
from mimic_jax.models.flops import model_flops
from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.training.experiment import Experiment, check, total_steps
from mimic_jax.training.mesh import held_rows
from mimic_jax.training.setup import Setup, set_up
from mimic_jax.training.state import check_start
from mimic_jax.training.workdir import position_grid, saved_steps


@dataclasses.dataclass(frozen=True)
class Run:
    """config: resolved. workdir: where all that the run leaves goes.
    examples, held_out: what is trained on, and what is evaluated on, if anything.
    initial: weights that it begins from; None for fresh ones, or where it carries on.
    steps, warmup_steps: of the whole run, and until the learning rate is at its peak.
    """

    config: ConfigDict
    workdir: Path
    experiment: Experiment
    mixture: Mixture
    examples: Examples
    held_out: Examples | None
    initial: Weights | None
    steps: int
    warmup_steps: int
    setup: Setup

    @property
    def flops(self) -> int:
        """Of the model in a step."""
        config, experiment = self.config, self.experiment
        return sum(model_flops(config.objective, experiment.sizes, experiment.crop, config.batch_size).values())

    @property
    def init_key(self) -> jax.Array:
        """Of the parameters that it begins with."""
        return jax.random.split(jax.random.key(self.config.seed))[0]

    @property
    def step_key(self) -> jax.Array:
        """Of what is random in its steps."""
        return jax.random.split(jax.random.key(self.config.seed))[1]

    def batches(self, first_step: int) -> Prefetch:
        """Batches on the devices, from global step `first_step` (0-based) on.

        Each host reads the rows that its devices hold.
        """
        experiment, places = self.experiment, self.setup.batch
        rows = held_rows(places["view1"].sharding, experiment.records)

        def put(batch: dict[str, UInt8[np.ndarray, "rows height width 3"]]) -> dict[str, jax.Array]:
            return {name: place(places[name], views) for name, views in batch.items()}

        def place(whole: jax.ShapeDtypeStruct, views: UInt8[np.ndarray, "rows height width 3"]) -> jax.Array:
            read_at = lambda index: views[np.searchsorted(rows, np.arange(len(whole))[index[0]])]  # noqa: E731
            return jax.make_array_from_callback(whole.shape, whole.sharding, read_at)

        read = batches(
            self.examples,
            size=experiment.size,
            views=tuple(places),
            batch_size=experiment.records,
            seed=self.config.seed,
            first_step=first_step,
            rows=rows,
            threads=self.config.data.threads,
            workers=self.config.data.workers,
        )
        return Prefetch(read, put)

    def names(self, step: int) -> list[str]:
        """The examples of a step, counted from 1, as people can find them."""
        places = examples_in_step(
            self.examples, batch_size=self.experiment.records, seed=self.config.seed, step=step - 1
        )
        return describe(self.examples, places.tolist())

    def about(self) -> str:
        """One line about what is going to happen, and lines about what is odd about it."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.setup.shapes.params))
        apart = f"{len(self.held_out)} pairs to evaluate on" if self.held_out is not None else "none to evaluate on"
        # The rate rises to the end of the warm-up and falls from there.
        peak = float(self.setup.schedule(min(self.steps, self.warmup_steps)))
        lines = [
            f"{self.config.objective}, {parameters / 1e6:.1f} M parameters: {len(self.examples)} pairs to train on, "
            f"{apart}; {self.steps} steps of {self.experiment.records} pairs, learning rate up to {peak:.3g}"
        ]
        if self.steps <= self.warmup_steps:
            lines.append(
                f"warning: the run ends within the warm-up of {self.warmup_steps} steps: the learning rate stays below "
                "its peak; set config.optimizer.warmup_steps and schedule_steps for a short run"
            )
        if self.held_out is not None and not self.config.eval.data and len(self.held_out) > len(self.examples):
            lines.append(
                f"warning: config.eval.held_out={self.config.eval.held_out} holds out whole scenes, and of these few "
                f"{len(self.held_out)} of {len(self.held_out) + len(self.examples)} pairs; to train on all give "
                "--config.eval.data=DATASET of other scenes, or --config.eval.held_out=0"
            )
        if len(self.examples) < self.experiment.records:
            lines.append(
                f"warning: config.data.train has {len(self.examples)} pairs, fewer than the "
                f"{self.experiment.records} of a step"
            )
        return "\n".join(lines)


def open_run(config: ConfigDict, workdir: Path) -> Run:
    """Checks all of a config that can be checked before anything is computed, and builds its parts.

    Args:
      workdir: of the run, if it has been begun; nothing is written.

    Raises:
      InputError: a field of the config, the weights or the data cannot be used.
    """
    check(config)  # before weights are read, which takes a while
    begins = hosts.as_first(not saved_steps(workdir))
    initial = load(config.init) if config.init and begins else None
    config = _with_known_grid(config, workdir, initial)
    experiment = check(config)
    if initial:
        check_start(initial, config.objective, experiment.sizes)
    mixture = open_mixture(config.data.train, "config.data.train")
    examples, held_out = _split(config, mixture)
    # Where both views of a pair are images, a pair is two examples.
    steps, *lengths = total_steps(config, len(examples) * config.batch_size // experiment.records)
    setup = set_up(config, experiment, tuple(lengths))
    return Run(config, workdir, experiment, mixture, examples, held_out, initial, steps, lengths[0], setup)


def _with_known_grid(config: ConfigDict, workdir: Path, initial: Weights | None) -> ConfigDict:
    """The config with the grid of the added positions of the run that is resumed, or of the weights it begins from."""
    grid = position_grid(workdir) or (initial and initial.sizes.position_grid)
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
        hosts.first_says(
            "warning: config.data.train has a single scene, so nothing is held out and nothing is evaluated; "
            "give --config.eval.data=DATASET"
        )
    return examples, held_out if len(held_out) else None
