"""Processes that share work: how many, and how each begins."""

import multiprocessing
import os
import signal
import threading

import cv2


def cores() -> int:
    """Cores that this process may use: on a shared server fewer than there are. macOS cannot tell, and gives all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Initializer of a pool's workers: no threads beside the process, Ctrl-C left to the parent, an end with it."""
    # The parent answers the keyboard for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process per core leaves no core for OpenCV's own threads.
    cv2.setNumThreads(1)
    # A worker whose parent is killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
