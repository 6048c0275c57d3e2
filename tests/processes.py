"""Processes of a test that work together: where they meet, and how they end."""

import random
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def free_port() -> int:
    """A port of this machine that nobody listens on, and that the system gives to nobody who asks for any."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as free:
            try:
                free.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise OSError("no free port was found")


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen, seconds: float = 200) -> None:
    """Returns once a condition holds, or a process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and all(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise TimeoutError(f"what is waited for has not come: {[each.communicate() for each in processes]}")
        time.sleep(0.002)


def finish(processes: Sequence[subprocess.Popen], seconds: float = 200) -> tuple[list[int], list[tuple[str, str]]]:
    """The exit codes of processes, and what they have written to standard output and standard error.

    All are read at once, as one whose pipe is full waits.
    """
    with ThreadPoolExecutor(len(processes)) as pool:
        try:
            ended = list(pool.map(lambda process: process.communicate(timeout=seconds), processes))
        finally:
            for process in processes:
                process.kill()
    return [process.returncode for process in processes], ended
