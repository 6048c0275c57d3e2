"""What launch.pretrain and launch.finetune share: their flags, and one call of `train`."""

from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from mimic_jax import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; fields change with --config.a.b=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the resolved config go.")
CLUSTER = flags.DEFINE_bool("cluster", False, "Ask SLURM, GKE or the TPU slice which processes there are.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, the same for every process.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST step of a trace, which goes to DIR/profile.")
WANDB = flags.DEFINE_string("wandb", "", "Project of Weights & Biases that gets the metrics too.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    profile = _steps(PROFILE.value) if PROFILE.value else None
    # Imported here, so that --help and a misspelt flag answer at once.
    from mimic_jax import files, hosts
    from mimic_jax.tasks import make_task
    from mimic_jax.training.loop import train

    if files.is_remote(WORKDIR.value):
        raise command.InputError(
            f"--workdir={WORKDIR.value} must be a folder, as metrics are appended to files there; mount the bucket "
            "(docs/pods.md)"
        )
    hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value, cluster=CLUSTER.value)
    hosts.heed_sigterm()
    # What fails in Orbax' threads it logs, and raises again where it is waited for.
    logging.set_verbosity(logging.FATAL)
    train(CONFIG.value, Path(WORKDIR.value), make_task, profile=profile, wandb_project=WANDB.value)


def _steps(span: str) -> tuple[int, int]:
    first, _, last = span.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise command.InputError(f"--profile={span} must be FIRST:LAST, two steps as in 100:110")
    return int(first), int(last)
