"""Mines pairs of overlapping views from videos, images, 3-D scenes and released pair sets into a pair dataset.

    python -m data_prep.mine --source=video --input=videos --output=pairs
    python -m data_prep.mine --preset=co3d --input=co3d --output=pairs

A run that was stopped, by Ctrl-C or by a crash, carries on where it was when the same command is given again; new
scenes in the input are added to a finished dataset in the same way. What is written depends on the input and the
settings alone, never on workers, their order or how often the run was stopped.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from data_prep import dataset, matching, progress, rotations, sources, workers
from data_prep.mining import CRASHED, crash_to_part, mine_apart, mine_to_part
from data_prep.settings import POLICIES_OF, PRESETS, Settings, choose
from data_prep.sources.scene import Scene, natural_key
from mimic_jax import command, files, records
from mimic_jax.command import InputError

# Problems that permissions, a disk that works again, another library or a longer table may cure.
CURABLE = (CRASHED, rotations.NOT_IN_TABLE, "cannot be read", "folder cannot be read", "image cannot be opened")


def mine(
    input: Path,
    output: Path,
    settings: Settings,
    *,
    turns: Mapping[str, int] | None = None,
    processes: int | None = None,
    shards: int | None = None,
    beam: str | None = None,
) -> dict[str, Any]:
    """Mines every scene of `input` that `output` does not hold yet, and returns the dataset's manifest.

    Args:
      input: what `settings.source` reads: a file, or a folder.
      output: the dataset folder; made where it is missing, carried on where it was begun with the same settings.
      turns: degrees clockwise by scene, where `settings.rotation` is "table".
      processes: None for one a core.
      shards: files of the dataset; None for one each 10 000 pairs.
      beam: options of Apache Beam, which then does the work instead of processes here; None for those.

    Raises:
      InputError: the input or output cannot be used, or no pair at all was kept (the manifest is then written).
      BrokenProcessPool: workers die as soon as they start; finished scenes are kept.
    """
    _check_reachable(input)
    if beam is not None:
        workers.check_beam(beam)
    scenes = [rotations.turned(scene, settings, turns or {}) for scene in sources.scenes(input, settings)]
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with dataset.opened(output, settings.values()):
        done = dataset.finished(output)
        todo = [scene for scene in scenes if not _is_done(scene, done.get(scene.name))]
        gone = sorted(done.keys() - {scene.name for scene in scenes}, key=natural_key)
        if gone:
            names = ", ".join(gone[:3]) + (" …" if gone[3:] else "")
            console.print(f"{len(gone)} mined earlier and no longer in the input stay in the dataset: {names}")
        processes, place = processes or workers.cores(), output / dataset.PARTS
        if todo:
            dataset.begin_parts(output, settings.values())
            # Long scenes first, so that none is left over at the end for one worker alone.
            todo = sorted(todo, key=lambda scene: -scene.input_size)
            with progress.Report(len(todo), console) as report:
                if beam is None:
                    work = functools.partial(mine_to_part, output=output, settings=settings)
                    workers.on_processes(
                        work,
                        todo,
                        processes,
                        lambda scene, result: report.add(*_ended(scene, result, output, settings)),
                    )
                else:
                    work = functools.partial(mine_apart, output=output, settings=settings)
                    workers.on_beam(work, todo, beam, place)
                    entries = dataset.finished(output)
                    for scene in todo:
                        report.add(scene.name, entries[scene.name])
        in_place = dataset.read_manifest(output)["scenes"]
        # With a new scene there is something to add: no need to read what every part says of itself.
        if all(scene.name in in_place for scene in todo) and dataset.finished(output) == in_place:
            # What was tried again came out as before.
            dataset.remove(place)
        if dataset.is_whole(output, shards):
            manifest = dataset.read_manifest(output)
            console.print(f"{output}: already done, nothing new in the input")
        else:
            if beam is None:
                each = functools.partial(workers.on_processes, processes=processes)
            else:
                each = functools.partial(workers.on_beam, options=beam, place=place)
            manifest = dataset.assemble(output, settings.values(), settings.patches, shards, each)
    if not manifest["totals"]["pairs_kept"]:
        reasons = _reasons(manifest["totals"]) or "no pair was tried"
        raise InputError(
            f"no pair was kept: {reasons} (see {output / records.MANIFEST}); "
            "another --step, --policy or band may keep some"
        )
    return manifest


def _check_reachable(input: Path) -> None:
    try:
        there = input.exists()
    except Exception as error:  # of a bucket: no network, no login, no such bucket, each with a type of its own
        raise InputError(f"{input}: cannot be reached ({type(error).__name__}: {str(error)[:200]})") from error
    if not there:
        raise InputError(f"{input}: no such file or folder (--input)")


def _ended(scene: Scene, result: Any, output: Path, settings: Settings) -> tuple[str, dict[str, Any]]:
    return crash_to_part(scene, output, settings) if isinstance(result, workers.Crashed) else result


def _is_done(scene: Scene, entry: dict[str, Any] | None) -> bool:
    """Whether the scene was mined, as it is now; what could not be read may be curable, and is tried again."""
    if entry is None or any(problem.startswith(CURABLE) for problem in entry["problems"]):
        return False
    return (entry["input_size"], entry.get("rotation", 0)) == (scene.input_size, scene.rotation)


def _reasons(totals: dict[str, Any]) -> str:
    return ", ".join(f"{count} × {reason}" for key in ("rejected", "problems") for reason, count in totals[key].items())


def _summary(output: Path, totals: dict[str, Any]) -> Table:
    table = Table("pairs", str(output), title_justify="left")
    for label, key in (("scenes", "scenes"), ("frames read", "frames_read"), ("pairs tried", "pairs_tried")):
        table.add_row(label, str(totals[key]))
    for reason, count in totals["rejected"].items():
        table.add_row(f"  {reason}", str(count))
    table.add_row("pairs kept", str(totals["pairs_kept"]), style="bold")
    if anchors := totals.get("yield", {}).get("anchors"):
        found, fixed = (totals["yield"].get(key, 0) for key in ("kept", "at the fixed step"))
        table.add_row("frames at each step", str(anchors))
        table.add_row("  that found a partner", f"{found} ({found / anchors:.0%})")
        table.add_row("  that would have at the fixed step", f"{fixed} ({fixed / anchors:.0%})")
    for problem, count in totals["problems"].items():
        table.add_row(f"problem: {problem}", str(count), style="yellow")
    return table


def _margins(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        top, right, bottom, left = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"--margins={text}: four fractions are needed: top,right,bottom,left") from error
    return top, right, bottom, left


def define_flags() -> None:
    """The command's flags; not defined on import, so that other commands can use this module."""
    policies = sorted({policy for policies in POLICIES_OF.values() for policy in policies})
    flags.DEFINE_string("input", None, "What to mine: a file or a folder; gs://… too.")
    flags.DEFINE_string("output", None, "The dataset folder; gs://… too.")
    flags.DEFINE_enum("preset", None, list(PRESETS), "A published combination; other flags stand over it.")
    flags.DEFINE_enum("source", None, list(POLICIES_OF), "What the input is. Default: video.")
    flags.DEFINE_enum("policy", None, policies, "Which frames of a scene are compared. Default: what suits the source.")
    flags.DEFINE_float("step", None, "Between frames: seconds of a video (default 1), frames of a folder.")
    flags.DEFINE_float("min_overlap", None, "Least overlap of a kept pair, 0 to 1. Default: 0.5.")
    flags.DEFINE_float("max_overlap", None, "Greatest overlap of a kept pair, 0 to 1. Default: 0.75.")
    flags.DEFINE_enum(
        "matcher", None, list(matching.MATCHERS), "How two views are matched. Default: robust; published for presets."
    )
    flags.DEFINE_integer("image_size", None, "Views are resized to this many pixels a side. Default: 224.")
    flags.DEFINE_integer("patch_size", None, "Pixels a side of a patch. Default: 16.")
    flags.DEFINE_integer("quality", None, "JPEG quality of the stored views, 1 to 100. Default: 95.")
    flags.DEFINE_string("margins", None, "Cut away from frames: top,right,bottom,left, as fractions of their sides.")
    flags.DEFINE_string(
        "rotation",
        None,
        "tag: the file's own (default). 0, 90, 180, 270: degrees clockwise. Or a table (CSV) of scenes.",
    )
    flags.DEFINE_float("min_length", None, "Shorter scenes are left out: seconds of a video, images of a folder.")
    flags.DEFINE_string("folder", None, "Of folders of images, only those of this name, as images or color.")
    flags.DEFINE_integer("samples", None, "Places tried in each 3-D scene. Default: 1000.")
    flags.DEFINE_enum("up", None, ["y", "z"], "The axis that points up in 3-D scenes. Default: y.")
    flags.DEFINE_integer("seed", None, "Of the random draws in 3-D scenes. Default: 0.")
    flags.DEFINE_enum("renderer", None, ["rays", "habitat"], "What films 3-D scenes. Default: rays.")
    flags.DEFINE_string("name", None, "Dataset name stored in the records. Default: the input's name.")
    flags.DEFINE_integer("workers", None, "Processes. Default: one a core.", lower_bound=1)
    flags.DEFINE_integer("shards", None, "Files of the dataset. Default: one each 10 000 pairs.", lower_bound=1)
    flags.DEFINE_enum("engine", "local", ["local", "beam"], "local: processes here. beam: Apache Beam.")
    flags.DEFINE_string("beam_options", "", 'For --engine=beam, as Beam takes them: "--runner=DataflowRunner …".')


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS.flag_values_dict()
    if not values["input"] or not values["output"]:
        raise InputError(f"--{'output' if values['input'] else 'input'} is missing (--help lists the flags)")
    source, output = files.as_path(values["input"]), files.as_path(values["output"])
    if values["beam_options"] and values["engine"] != "beam":
        raise InputError("--beam_options: only with --engine=beam")
    turns = None
    if values["rotation"] not in (None, "tag", "0", "90", "180", "270"):
        turns = rotations.read_table(files.as_path(values["rotation"]))
        values["rotation"] = "table"
    values["margins"] = _margins(values["margins"])
    name = values["name"] or (source.stem if source.is_file() else source.resolve().name)
    chosen = {field.name: values[field.name] for field in dataclasses.fields(Settings) if field.name != "name"}
    settings = choose(sources.label(name), values["preset"], **chosen)
    try:
        manifest = mine(
            source,
            output,
            settings,
            turns=turns,
            processes=values["workers"],
            shards=values["shards"],
            beam=values["beam_options"] if values["engine"] == "beam" else None,
        )
    except BrokenProcessPool:
        sys.exit("error: workers die as soon as they start (memory?); no finished scene is lost: run the same command")
    Console().print(_summary(output, manifest["totals"]))


if __name__ == "__main__":
    define_flags()
    command.run(main)
