"""Pre-trains a model on a pair dataset.

    python -m launch.pretrain --config=configs/croco_tiny.py --workdir=DIR --config.data.train=DATASET

Writes DIR/checkpoints, DIR/metrics.jsonl and DIR/config.json. Interrupted, the same command carries on.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mimic_jax import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; fields change with --config.a.b=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the resolved config go.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    # Imported here, so that --help and a misspelt flag answer at once.
    from mimic_jax.training.loop import train

    train(CONFIG.value, Path(WORKDIR.value))


if __name__ == "__main__":
    command.run(main)
