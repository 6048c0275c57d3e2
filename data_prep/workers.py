"""Work shared out: to processes on this machine, or to a cluster through Apache Beam."""

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import pickle
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import cv2

from mimic_jax import files
from mimic_jax.command import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING, _BEGUN, _ENDED = range(3)


class Crashed:
    """Stands for the result of an item whose process died each time that it was tried."""


def must_end(item: object, result: object) -> None:
    """What is done with the result of work that is not to crash."""
    if isinstance(result, Crashed):
        raise BrokenProcessPool(f"a process died twice at {item}")


def cores() -> int:
    """Cores that this process may use: on a shared server fewer than there are. macOS cannot tell, and gives all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    done: Callable[[Item, Result | Crashed], None] = must_end,
) -> None:
    """Calls `function` on every item, in processes of their own, and `done` here, as each is finished.

    A process that dies, killed or by a fault in a library, costs nothing but time: what it was at is tried again alone,
    and is `Crashed` where that dies too. An exception in `function`, or Ctrl-C here, ends the others at once and is
    raised.

    Raises:
      BrokenProcessPool: processes die before they begin any work.
    """
    # The tracker of shared semaphores tells of those that Ctrl-C leaves to it; it removes them, and that is all.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    left, idle = set(range(len(items))), 0
    while left:
        marks = multiprocessing.get_context("spawn").RawArray("b", len(items))
        ended = _pool(function, items, sorted(left), processes, marks, done)
        left -= ended
        idle = 0 if any(marks) else idle + 1
        if left and idle == 3:
            raise BrokenProcessPool("processes die as soon as they start")
        suspects = [number for number in sorted(left) if marks[number] == _BEGUN]
        with concurrent.futures.ThreadPoolExecutor(processes) as threads:
            results = threads.map(lambda number: _try_alone(function, items[number]), suspects)
            for suspect, result in zip(suspects, results, strict=True):
                done(items[suspect], result)
        left.difference_update(suspects)


def on_beam(function: Callable[[Item], object], items: Sequence[Item], options: str, place: Path) -> None:
    """Calls `function` on every item through Apache Beam; what it returns is lost.

    Args:
      options: as Beam's own programs take them, "--runner=…" first among them; Beam's direct runner where empty. What
        is wrong with them `check_beam` tells, before anything is begun.
      place: a folder that every worker can read; the items pass through a file there, as they may be too many for the
        description of a pipeline.

    Raises:
      InputError: a worker met bad input.
      OSError: a worker could not write.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    pipeline = beam.Pipeline(options=PipelineOptions(shlex.split(options)))
    place.mkdir(parents=True, exist_ok=True)
    todo = place / "todo.pickle"
    files.write(todo, pickle.dumps(list(items)))
    try:
        with pipeline:
            (
                pipeline
                | beam.Create([os.fspath(todo)])
                | "list" >> beam.FlatMap(_unpickle)
                | "deal" >> beam.Reshuffle()
                | "work" >> beam.Map(function)
            )
    except (OSError, RuntimeError) as error:
        # Beam tells what happened to a worker as text.
        told = [line for line in str(error).splitlines() if "InputError: " in line or "[Errno " in line]
        if not told:
            raise
        raise (InputError if "InputError: " in told[-1] else OSError)(told[-1].partition("Error: ")[2]) from error
    todo.unlink(missing_ok=True)


def check_beam(options: str) -> None:
    """Raises InputError where Apache Beam is not installed, or does not know an option.

    Beam itself would pass over an option with a line in its log, and go on with a runner of its own.
    """
    logging.disable(logging.WARNING)
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        flags = shlex.split(options)
        known = PipelineOptions(flags).get_all_options()
        named = {flag.partition("=")[0] for flag in flags if flag.startswith("--")}
        unknown = sorted(flag for flag in named if flag[2:].removeprefix("no_") not in known)
        if unknown:
            raise InputError(f"--beam_options: Apache Beam does not know {' '.join(unknown)}")
        beam.Pipeline(options=PipelineOptions(flags))
    except ImportError as error:
        raise InputError("--engine=beam needs Apache Beam: pip install 'mimic_jax[beam]'") from error
    except ValueError as error:
        raise InputError(f"--beam_options={options}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _start_worker() -> None:
    """Initializer of a pool's workers: no threads beside the process, Ctrl-C left to the parent, an end with it."""
    # The parent answers the keyboard for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_opencv()
    # A worker whose parent is killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def quiet_opencv() -> None:
    """One thread a process, as there is a process for each core; and what cannot be read is our one line to report."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _pool(function, items, numbers: list[int], processes: int, marks, done) -> set[int]:
    """One pool's work until all is done or one of its processes dies. Returns the numbers of the items that ended."""
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(numbers)),
        multiprocessing.get_context("spawn"),
        initializer=_start_marking_worker,
        initargs=(marks,),
    )
    ended: set[int] = set()
    try:
        with _interrupts_held():  # Workers inherit this: Ctrl-C is the parent's to handle.
            try:
                futures = {pool.submit(_marked, function, items[number], number): number for number in numbers}
            except (ValueError, BrokenProcessPool):  # a worker was killed while the pool was still starting others
                return ended
        for future in concurrent.futures.as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            ended.add(futures[future])
            done(items[futures[future]], result)
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return ended


def _try_alone(function, item):
    """The function's result on an item in a pool of one process, `Crashed` where that dies."""
    results: list = []
    marks = multiprocessing.get_context("spawn").RawArray("b", 1)
    _pool(function, [item], [0], 1, marks, lambda item, result: results.append(result))
    return results[0] if results else Crashed()


# What each item of this process's pool is at; shared with the parent.
_marks: Any = None


def _start_marking_worker(marks) -> None:
    global _marks
    _marks = marks
    _start_worker()


def _marked(function, item, number: int):
    _marks[number] = _BEGUN
    result = function(item)
    _marks[number] = _ENDED
    return result


def _unpickle(path: str) -> list:
    return pickle.loads(files.as_path(path).read_bytes())


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
