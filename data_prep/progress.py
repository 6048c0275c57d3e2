"""How far a long run has come."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep import manifests
from data_prep.sources.scene import BLANK_VIEW
from mimic_jax import records

# Where no one watches, a line so often, seconds.
LOG_EVERY = 60.0


class Report:
    """What is done so far: a bar on a terminal, elsewhere a line a minute; and a line for each problem of a scene."""

    def __init__(self, scenes: int, console: Console, doing: str = "mining", kind: str = records.NAME):
        self._doing, self._kind = doing, kind
        self._console, self._scenes, self._last = console, scenes, time.monotonic()
        self._done = self._kept = self._tried = 0
        self._bar = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("scenes", total=scenes)

    def __enter__(self) -> "Report":
        self._bar.start()
        self._start = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def add(self, name: str, entry: dict[str, Any]) -> None:
        self._done, self._kept = self._done + 1, self._kept + entry[records.count_names(self._kind)[1]]
        self._tried += entry[records.count_names(self._kind)[0]]
        for problem, count in entry["problems"].items():
            if problem == BLANK_VIEW:
                continue
            times = f" ({count} times)" if count > 1 else ""
            self._console.print(f"warning: {name}: {problem}{times}")
        now = time.monotonic()
        rate = self._tried / max(now - self._start, 1e-3)
        state = f"scenes, {self._kept} {manifests.UNITS[self._kind]} kept, {rate:.0f} tried/s"
        self._bar.update(self._task, advance=1, description=state)
        if not self._console.is_terminal and now - self._last > LOG_EVERY:
            self._last = now
            self._console.print(f"{self._doing}: {self._done} of {self._scenes} {state}")
