"""Pre-trains a model on a pair dataset.

    python -m launch.pretrain --config=configs/croco_tiny.py --workdir=DIR --config.data.train=DATASET

Writes DIR/checkpoints, DIR/metrics.jsonl and DIR/config.json. Interrupted, the same command resumes.

On several hosts the same command runs on each, and all see DIR. Under SLURM and on GKE the processes find each other;
--cluster says so on a TPU slice; elsewhere give each --coordinator=HOST:PORT --processes=N --process=I.
"""

from launch.train import main
from mimic_jax import command

if __name__ == "__main__":
    command.run(main)
