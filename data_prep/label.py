"""Turns labelled data into a dataset of images (depth, normals, classes) or of stereo records (flow, relative pose).

    python -m data_prep.film --output=films --scenes=4 --ground_truth
    python -m data_prep.label --source=worlds --input=films --output=rooms
    python -m data_prep.label --source=worlds --input=films --output=rooms_stereo --records=stereo

A run that was stopped, by Ctrl-C or by a crash, resumes when the same command is given again; new scenes in the input
are added to a finished dataset in the same way. What is written depends on the input and the settings only, never on
the workers, their order or interruptions.
"""

import dataclasses
import functools
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from data_prep import dataset, labels, manifests
from data_prep.building import build, check_reachable, reasons
from data_prep.inspect import counts_of
from data_prep.labelling import crash_to_part, label_to_part
from data_prep.labels import SOURCES, Settings
from data_prep.sources import label as label_text
from mimic_jax import command, files, records
from mimic_jax.command import InputError


def label(
    input: Path,
    output: Path,
    settings: Settings,
    *,
    processes: int | None = None,
    shards: int | None = None,
) -> dict[str, Any]:
    """Reads every scene of `input` that `output` does not hold yet, and returns the dataset's manifest.

    Args:
      input: what `settings.source` reads.
      output: the dataset folder; made where it is missing, resumed where it was begun with the same settings.
      settings: what decides the records.
      processes: None for one a core.
      shards: files of the dataset; None for one each 10 000 records.

    Raises:
      InputError: the input or output cannot be used, or no record at all was kept (the manifest is then written).
      BrokenProcessPool: workers die as soon as they start; finished scenes are kept.
    """
    check_reachable(input)
    found = labels.read(input, settings)
    values, facts = settings.values(), {}
    if found.classes:
        # Indices in records that are stored already must keep their meaning.
        values["classes"] = facts["classes"] = list(found.classes)
        stored = dataset.read_manifest(output).get("classes") if (output / records.MANIFEST).is_file() else None
        if stored is not None and stored != facts["classes"]:
            new = sorted(set(found.classes) - set(stored)) or "another order"
            raise InputError(
                f"{output}: the input has other classes than this dataset (new: {new}); give another --output"
            )
    options = {"output": output, "settings": settings, "schema": found.schema}
    manifest = build(
        found.scenes,
        output,
        values,
        found.schema,
        functools.partial(label_to_part, **options),
        functools.partial(crash_to_part, **options),
        doing="labelling",
        processes=processes,
        shards=shards,
        facts=facts,
    )
    if not manifests.kept(manifest):
        why = reasons(manifest["totals"]) or "none was tried"
        raise InputError(f"no record was kept: {why} (see {output / records.MANIFEST})")
    return manifest


def _summary(output: Path, manifest: dict[str, Any]) -> Table:
    totals, kind = manifest["totals"], manifests.kind_of(manifest)
    frames, tried, kept = counts_of(totals, kind)
    unit = manifests.UNITS[kind]
    table = Table(unit, str(output))
    for name, count in (("scenes", totals["scenes"]), ("frames read", frames), (f"{unit} tried", tried)):
        table.add_row(name, str(count))
    for reason, count in totals["rejected"].items():
        table.add_row(f"  {reason}", str(count))
    table.add_row(f"{unit} kept", str(kept), style="bold")
    for problem, count in totals["problems"].items():
        table.add_row(f"problem: {problem}", str(count), style="yellow")
    return table


def define_flags() -> None:
    """The command's flags; not defined on import, so that other commands can use this module."""
    kinds = sorted({kind for kinds in SOURCES.values() for kind in kinds})
    flags.DEFINE_string("input", None, "What to read: for --source=worlds, a folder of films.")
    flags.DEFINE_string("output", None, "The dataset folder.")
    flags.DEFINE_enum("source", "worlds", list(SOURCES), "What the input is.")
    flags.DEFINE_enum("records", "images", kinds, "The kind of record to make.")
    flags.DEFINE_integer("every", 10, "Frames between images, or between first views of stereo records.")
    flags.DEFINE_integer("gap", None, "Frames between the two views of a stereo record. Default: 10.")
    flags.DEFINE_float("min_overlap", None, "Least share of view 1 that view 2 sees in a stereo record. Default: 0.1.")
    flags.DEFINE_integer("image_size", 0, "Images are made smaller to this many pixels a side. 0: as they are.")
    flags.DEFINE_integer("quality", 95, "JPEG quality of the stored images, 1 to 100.")
    flags.DEFINE_string("name", None, "Dataset name stored in the records. Default: the input's name.")
    flags.DEFINE_integer("workers", None, "Processes. Default: one a core.", lower_bound=1)
    flags.DEFINE_integer("shards", None, "Files of the dataset. Default: one each 10 000 records.", lower_bound=1)


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS.flag_values_dict()
    if not values["input"] or not values["output"]:
        raise InputError(f"--{'output' if values['input'] else 'input'} is missing (--help lists the flags)")
    for key in ("gap", "min_overlap"):
        if values[key] is not None and values["records"] != "stereo":
            raise InputError(f"--{key}: only for --records=stereo, not {values['records']}; leave it out")
    input, output = files.as_path(values["input"]), files.as_path(values["output"])
    chosen = {field.name: values[field.name] for field in dataclasses.fields(Settings)}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    settings = Settings(**chosen | {"name": label_text(values["name"] or input.resolve().name)})
    try:
        manifest = label(input, output, settings, processes=values["workers"], shards=values["shards"])
    except BrokenProcessPool:
        sys.exit("error: workers die as soon as they start (memory?); no finished scene is lost: run the same command")
    Console().print(_summary(output, manifest))


if __name__ == "__main__":
    define_flags()
    command.run(main)
