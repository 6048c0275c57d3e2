"""A dataset made scene by scene: what is done already is kept, the rest is shared out, and all of it is put together.

`mine` and `label` are this with work of their own.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep import dataset, progress, rotations, workers
from data_prep.sources.scene import natural_key
from mimic_jax import records
from mimic_jax.command import InputError

CRASHED = "reading it crashes the process"
# Problems that permissions, a disk that works again, another library or a longer table may cure.
CURABLE = (CRASHED, rotations.NOT_IN_TABLE, "cannot be read", "folder cannot be read", "image cannot be opened")

Entry = dict[str, Any]


def build(
    scenes: Sequence[Any],
    output: Path,
    settings: Entry,
    schema: records.Schema,
    work: Callable[..., tuple[str, Entry]],
    crashed: Callable[..., tuple[str, Entry]],
    *,
    is_done: Callable[[Any, Entry], bool] | None = None,
    doing: str = "mining",
    processes: int | None = None,
    shards: int | None = None,
    beam: str | None = None,
    work_apart: Callable[..., None] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Entry:
    """Does every scene that `output` does not hold yet, puts the dataset together, and returns its manifest.

    Args:
      scenes: all scenes of the input, picklable; each has a unique `name` and an `input_size` (bytes or a count), and
        is done again when that has changed.
      output: the dataset folder; made where it is missing, resumed where it was begun with the same settings.
      settings: what decides the records, besides the scenes.
      schema: of the records.
      work: writes one scene's part (`dataset.write_part`) and returns its name and entry; called in other processes.
      crashed: does the same, here, for a scene that its process died of.
      is_done: whether a scene with such an entry is as it was; sizes are compared anyway. None: nothing more.
      doing: the word for the work in what is printed.
      processes: None for one a core.
      shards: files of the dataset; None for one each 10 000 records.
      beam: options of Apache Beam, which then does the work; None for processes here.
      work_apart: `work` in a process of its own, for Beam.
      facts: more of the manifest, as {"classes": [names]}.

    Raises:
      InputError: the output cannot be used.
      BrokenProcessPool: workers die as soon as they start; finished scenes are kept.
    """
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with dataset.opened(output, settings):
        done = dataset.finished(output)
        todo = [scene for scene in scenes if not _is_done(scene, done.get(scene.name), is_done)]
        gone = sorted(done.keys() - {scene.name for scene in scenes}, key=natural_key)
        if gone:
            names = ", ".join(gone[:3]) + (" …" if gone[3:] else "")
            console.print(f"{len(gone)} scenes of an earlier run are no longer in the input; they stay: {names}")
        processes, place = processes or workers.cores(), output / dataset.PARTS
        if todo:
            dataset.begin_parts(output, settings)
            # Long scenes first, so that none is left over at the end for one worker.
            todo = sorted(todo, key=lambda scene: -scene.input_size)
            with progress.Report(len(todo), console, doing, schema.kind) as report:
                if beam is None:

                    def ended(scene: Any, result: Any) -> None:
                        report.add(*(crashed(scene) if isinstance(result, workers.Crashed) else result))

                    workers.on_processes(work, todo, processes, ended)
                else:
                    workers.on_beam(work_apart, todo, beam, place)
                    entries = dataset.finished(output)
                    for scene in todo:
                        report.add(scene.name, entries[scene.name])
        in_place = dataset.read_manifest(output)["scenes"]
        # With a new scene there is something to add: no need to read every part's entry.
        if all(scene.name in in_place for scene in todo) and dataset.finished(output) == in_place:
            # What was tried again came out as before.
            dataset.remove(place)
        if dataset.is_whole(output, shards):
            console.print(f"{output}: already done, nothing new in the input")
            return dataset.read_manifest(output)
        if beam is None:
            each = functools.partial(workers.on_processes, processes=processes)
        else:
            each = functools.partial(workers.on_beam, options=beam, place=place)
        return dataset.assemble(output, settings, schema, shards, each, dict(facts or {}))


def check_reachable(input: Path) -> None:
    """Raises InputError where there is no such input."""
    try:
        there = input.exists()
    except Exception as error:  # of a bucket: no network, no login, no such bucket, each with a type of its own
        raise InputError(f"{input}: cannot be reached ({type(error).__name__}: {str(error)[:200]})") from error
    if not there:
        raise InputError(f"{input}: no such file or folder (--input)")


def reasons(totals: Entry) -> str:
    """Why records were not kept, in one line; empty where none was tried."""
    return ", ".join(f"{count} × {reason}" for key in ("rejected", "problems") for reason, count in totals[key].items())


def _is_done(scene: Any, entry: Entry | None, is_done: Callable[[Any, Entry], bool] | None) -> bool:
    """Whether the scene was done, as it is now; what could not be read may be curable, and is tried again."""
    if entry is None or any(problem.startswith(CURABLE) for problem in entry["problems"]):
        return False
    return entry["input_size"] == scene.input_size and (is_done is None or is_done(scene, entry))
