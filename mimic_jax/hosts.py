"""The processes of one run, each with its share of the devices: how they meet, agree, and end together."""

import contextlib
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from mimic_jax.command import InputError, Stopped, one_line

# What a process finds when another one has gone, by the word in the message: CPUs, NVIDIA's GPUs, TPUs, all of them.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "coordination service", "heartbeat", "Connection reset", "Connection closed")


def join(coordinator: str | None, processes: int | None, process: int | None, *, cluster: bool) -> None:
    """Meets the other processes of the run, if there are any; to be called before anything asks for devices.

    Args:
      coordinator: HOST:PORT of process 0, the same in all of them.
      processes, process: how many there are, and which of them this is, counted from 0.
      cluster: whether SLURM, GKE or the TPU slice tells these three. Taken to be so where SLURM or GKE has started
        several processes.

    Raises:
      InputError: some of the three are missing or do not go together, or the cluster does not tell them.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"{' and '.join(missing)} missing: give --coordinator, --processes and --process together")
    if not missing:
        if not 0 <= process < processes:
            raise InputError(f"--process={process} must be from 0 to --processes={processes} − 1")
        if ":" not in coordinator:
            raise InputError(f"--coordinator={coordinator} must be HOST:PORT, the same for every process")
        # Nothing can be said once it has waited in vain: jax ends the process.
        print(f"process {process} of {processes} waits for the others at {coordinator}", flush=True)
        jax.distributed.initialize(coordinator, processes, process)
    elif cluster or _in_cluster():
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise InputError(
                "the processes that SLURM, GKE or the TPU slice (--cluster) has started cannot meet "
                f"({one_line(error)}); mend that, or give --coordinator, --processes and --process"
            ) from error
        first_says(f"{jax.process_count()} processes, {jax.device_count()} devices")


def heed_sigterm() -> None:
    """From now on SIGTERM raises `Stopped` in a process that is alone; where there are several, JAX listens itself."""
    if jax.process_count() == 1:  # which starts the devices: libtpu takes the signal to itself then
        signal.signal(signal.SIGTERM, _stop)


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def first_says(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(line, flush=True)


def wait(reason: str) -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def all_of(value: bool) -> bool:
    """Whether it is so in every process."""
    return bool(multihost_utils.process_allgather(value).all()) if jax.process_count() > 1 else value


def as_first(value: int) -> int:
    """What it is in the first process: where each looks for itself, a shared disk may show them different things."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def unlike_first(text: str) -> list[int]:
    """The processes in which a text is another one than in the first."""
    if jax.process_count() == 1:
        return []
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    return np.flatnonzero((digests != digests[0]).any(1)).tolist()


def fetch(tree: PyTree) -> PyTree:
    """Arrays as NumPy has them, whole, in every process."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


class Preemption:
    """Whether the run is asked to stop, by SIGTERM to any of its processes, or by Ctrl-C to its only one; in `with`."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Preemption":
        # With several processes jax listens itself, so that all of them stop after the same step.
        self._listens = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = [signal.signal(each, self._asked) for each in self._listens]
        return self

    def __exit__(self, *_) -> None:
        for each, handler in zip(self._listens, self._before, strict=True):
            signal.signal(each, handler)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _asked(self, number: int, _) -> None:
        if self.signal == signal.SIGINT == number:  # asked twice: at once
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Of several processes, ends this one at once where it fails, so that the others notice, with a line that says why.

    Left to itself it would wait for the others to finish, and they for it.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        me = f"process {jax.process_index()} of {jax.process_count()}"
        code = 1
        if isinstance(error, InputError):
            code = error.exit_code
            print(f"error: {me}: {one_line(error)}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            code = 130
            print(f"{me} interrupted; the same command, on all hosts, carries on", file=sys.stderr)
        elif any(word in str(error) for word in _LOST):
            print(
                f"error: {me} has lost another process ({one_line(error)[:160]}), so it stops; the same command, on "
                "all hosts, carries on from the newest checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stderr.flush()
        sys.stdout.flush()
        if is_first():  # JAX ends the others with this one: let them say what they have to say
            time.sleep(1)
        os._exit(code)


def _stop(*_) -> None:
    raise Stopped


def _in_cluster() -> bool:
    # `srun` sets the step's nodes; in the batch script itself they are not there.
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    return slurm or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
