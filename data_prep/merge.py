"""Joins datasets of one kind into one, record by record, without encoding anything again.

    python -m data_prep.merge OUT IN…

Scenes are named SOURCE/SCENE in the manifest of the whole; where two inputs have the same, the folder's name is put
before it. The records themselves stay as they are. What is in OUT is put there whole or not at all.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from data_prep import dataset, inspect, manifests, workers
from data_prep.shards import Piece
from mimic_jax import command, files, records
from mimic_jax.command import InputError


def merge(output: Path, inputs: Sequence[Path], *, shards: int | None = None, processes: int | None = None) -> Any:
    """Writes all records of `inputs`, in that order, to a new dataset at `output`, and returns its manifest.

    Args:
      output: a folder that is new or empty, or that a merge of the same inputs left, finished or not.
      inputs: folders of finished datasets.
      shards: files of the dataset; None for one each 10 000 records.
      processes: None for one a core.

    Raises:
      InputError: an input is not a whole dataset, one is given twice, their kinds, features, numbers of patches or
        classes differ, or the output holds something else.
    """
    opened = [records.open_dataset(folder) for folder in inputs]
    places = [str(folder.resolve()) for folder in inputs]
    if len(set(places)) < len(places):
        raise InputError(f"{' '.join(map(str, inputs))}: a dataset is given twice; its records would be, too")
    stored = [inspect.read_manifest(folder) for folder in inputs]
    schema = opened[0].schema
    for folder, one in zip(inputs, opened, strict=True):
        _check_alike(folder, one, inputs[0], opened[0])
    scenes: dict[str, dict[str, Any]] = {}
    pieces: list[Piece] = []
    for folder, manifest in zip(inputs, stored, strict=True):
        for (name, entry), found in zip(manifest["scenes"].items(), dataset.pieces_of(folder), strict=True):
            source = entry.get("source") or manifest["settings"]["name"]
            # Names in a merged dataset, or in MIMIC's release, say the source already.
            if "merged" not in manifest["settings"] and not name.startswith(f"{source}/"):
                name = f"{source}/{name}"
            entry = {**entry, "source": source}
            if entry == scenes.get(name) and entry[records.count_names(schema.kind)[1]]:
                raise InputError(f"{folder}: its scene {name!r} is in another of the datasets, the same; leave one out")
            if name in scenes:
                name = f"{folder.resolve().name}/{name}"
            if name in scenes:
                raise InputError(
                    f"{folder}: scene {name!r} is in two of the datasets; rename a folder or leave one out"
                )
            scenes[name] = entry
            pieces += found
    settings = {"merged": [manifest["settings"] for manifest in stored]}
    if schema.kind != records.NAME:
        settings["records"] = schema.kind
    used = [manifest["versions"] for manifest in stored]
    classes = {"classes": list(opened[0].classes())} if opened[0].classes() else {}
    whole = manifests.manifest_of(schema.kind, settings, used, scenes, classes)
    if (output / records.MANIFEST).exists() and inspect.read_manifest(output) != whole:
        raise InputError(f"{output}: holds another dataset already; name another folder, or remove it")
    with dataset.opened(output, settings):
        if dataset.read_manifest(output) != whole or not dataset.is_whole(output, shards):
            each = functools.partial(workers.on_processes, processes=processes or workers.cores())
            dataset.write(output, whole, pieces, schema, shards, each)
    return whole


def _check_alike(folder: Path, one: records.Dataset, first_folder: Path, first: records.Dataset) -> None:
    """Raises InputError where the records of two datasets cannot be in one."""
    if one.kind != first.kind:
        raise InputError(
            f"{folder}: a dataset of {one.kind}, and {first_folder} of {first.kind}; join those of one kind"
        )
    if one.kind == records.NAME and one.patches != first.patches:
        raise InputError(
            f"{folder}: its views have {one.patches} patches, those of {first_folder} {first.patches}; "
            "only datasets of one --image_size / --patch_size can be joined"
        )
    if one.schema != first.schema:
        raise InputError(
            f"{folder}: its records have {', '.join(one.schema.features)}, those of {first_folder} "
            f"{', '.join(first.schema.features)}; only datasets with the same features can be joined"
        )
    if one.classes() != first.classes():
        raise InputError(
            f"{folder}: its classes are not those of {first_folder}; only datasets with the same can be joined"
        )


def main(output: str, *inputs: str) -> None:
    """Runs the command."""
    manifest = merge(
        files.as_path(output),
        [files.as_path(folder) for folder in inputs],
        shards=flags.FLAGS.shards,
        processes=flags.FLAGS.workers,
    )
    unit = manifests.UNITS[manifests.kind_of(manifest)]
    Console(highlight=False).print(
        f"{output}: {manifests.kept(manifest)} {unit} of {manifest['totals']['scenes']} scenes", soft_wrap=True
    )


if __name__ == "__main__":
    flags.DEFINE_integer("shards", None, "Files of the dataset. Default: one each 10 000 records.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes. Default: one a core.", lower_bound=1)
    command.run(main, positional=("OUT", "IN…"))
