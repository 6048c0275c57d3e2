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

from data_prep import matching, rotations, sources, workers
from data_prep.building import build, check_reachable, reasons
from data_prep.mining import crash_to_part, mine_apart, mine_to_part
from data_prep.settings import POLICIES_OF, PRESETS, Settings, choose
from data_prep.sources.scene import Scene
from mimic_jax import command, files, records
from mimic_jax.command import InputError


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
    check_reachable(input)
    if beam is not None:
        workers.check_beam(beam)
    manifest = build(
        [rotations.turned(scene, settings, turns or {}) for scene in sources.scenes(input, settings)],
        output,
        settings.values(),
        settings.schema,
        functools.partial(mine_to_part, output=output, settings=settings),
        functools.partial(crash_to_part, output=output, settings=settings),
        is_done=_is_turned_alike,
        processes=processes,
        shards=shards,
        beam=beam,
        work_apart=functools.partial(mine_apart, output=output, settings=settings),
    )
    if not manifest["totals"]["pairs_kept"]:
        why = reasons(manifest["totals"]) or "no pair was tried"
        raise InputError(
            f"no pair was kept: {why} (see {output / records.MANIFEST}); another --step, --policy or band may keep some"
        )
    return manifest


def _is_turned_alike(scene: Scene, entry: dict[str, Any]) -> bool:
    return entry.get("rotation", 0) == scene.rotation


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
    flags.DEFINE_integer(
        "image_size", None, "Views are resized to this many pixels a side. Default: 224, or the preset's."
    )
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
