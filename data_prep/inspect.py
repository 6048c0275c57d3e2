"""Prints the manifest of a dataset: settings, versions, totals, reasons, and the scenes that stand out.

python -m data_prep.inspect DATASET
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from data_prep import dataset, manifests
from mimic_jax import command, files, records
from mimic_jax.command import InputError

Entry = dict[str, Any]


def counts_of(entry: Entry, kind: str) -> tuple[int, int, int]:
    """Frames read, records tried and records kept, in a scene or in all."""
    tried, kept = records.count_names(kind)
    return entry["frames_read"], entry[tried], entry[kept]


def read_manifest(folder: Path) -> Entry:
    """The manifest of a dataset, or of a run that kept no record; every entry has its counts, reasons and problems.

    Raises:
      InputError: the folder is missing or holds no such manifest.
    """
    path = folder / records.MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such dataset folder; `python -m data_prep.mine` or label makes one"
            ) from error
        if (folder / dataset.PARTS).exists() or (folder / dataset.READY).exists():
            raise InputError(
                f"{folder}: not finished; give the command that makes it again, then look at it"
            ) from error
        raise InputError(f"{path}: missing; give the --output of a `python -m data_prep.mine` or label") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged, or not written by mine or label; copy it again or make the dataset again"
        ) from error
    if not _is_manifest(manifest):
        raise InputError(
            f"{path}: not a manifest that mine, label or merge wrote; copy it again or make the dataset again"
        )
    return manifest


def settings_of(manifest: Entry) -> list[Entry]:
    """The settings of each run in a dataset: one, or those of every run that was merged."""

    def leaves(settings: Entry) -> Iterable[Entry]:
        if "merged" not in settings:
            yield settings
        else:
            for each in settings["merged"]:
                yield from leaves(each)

    return list(leaves(manifest["settings"]))


def source_of(entry: Entry, manifest: Entry) -> str:
    """The source dataset that a scene is from."""
    return str(entry.get("source") or manifest["settings"].get("name", "unknown"))


def totals_by_source(manifest: Entry) -> dict[str, Entry]:
    """The sums of `manifests.totals` for each source, in the order of their first scenes."""
    groups: dict[str, list[Entry]] = {}
    for entry in manifest["scenes"].values():
        groups.setdefault(source_of(entry, manifest), []).append(entry)
    kind = manifests.kind_of(manifest)
    return {source: manifests.totals(entries, kind) for source, entries in groups.items()}


def readable_size(count: int) -> str:
    """Bytes as a person says them: "12.3 MB"."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def tables(folder: Path, manifest: Entry, scenes: int = 5) -> list[Table]:
    """What there is to print, in order.

    Args:
      folder: the dataset; shards and bytes are counted there.
      manifest: from `read_manifest`.
      scenes: rows of each table of scenes.
    """
    sources = totals_by_source(manifest)
    found = [_overview(folder, manifest), _settings(manifest), _versions(manifest), _reasons(manifest)]
    kind = manifests.kind_of(manifest)
    unit = manifests.UNITS[kind]
    if len(sources) > 1:
        found.append(_counts("Sources", "source", sources, kind))
    entries = sorted(manifest["scenes"].items(), key=lambda item: -counts_of(item[1], kind)[2])
    if entries and len(entries) <= scenes:
        found.append(_counts("Scenes", "scene", dict(entries), kind))
    elif scenes:
        found.append(_counts(f"Scenes with most {unit}", "scene", dict(entries[:scenes]), kind))
        found.append(_counts(f"Scenes with fewest {unit}", "scene", dict(entries[: -scenes - 1 : -1]), kind))
    problems = [(name, entry["problems"]) for name, entry in manifest["scenes"].items() if entry["problems"]]
    if problems:
        found.append(_problems(problems, scenes))
    return [table for table in found if table.row_count]


def plain(text: str) -> str:
    """Text from the data with what a terminal would obey, or cannot show, spelt out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _is_manifest(manifest: Any) -> bool:
    if not isinstance(manifest, dict) or manifests.kind_of(manifest) not in manifests.UNITS:
        return False
    names = "frames_read", *records.count_names(manifests.kind_of(manifest))

    def has_counts(entry: Any) -> bool:
        return (
            isinstance(entry, dict)
            and all(type(entry.get(key)) is int for key in names)
            and all(_is_table(entry.get(key)) for key in ("rejected", "problems"))
            and _is_table(entry.get("yield", {}))
        )

    def has_settings(settings: Any) -> bool:
        if not isinstance(settings, dict):
            return False
        merged = settings.get("merged", [])
        return isinstance(merged, list) and all(map(has_settings, merged))

    return (
        all(isinstance(manifest.get(key), dict) for key in ("versions", "scenes"))
        and has_settings(manifest.get("settings"))
        and has_counts(manifest.get("totals"))
        and all(map(has_counts, manifest["scenes"].values()))
    )


def _is_table(table: Any) -> bool:
    return isinstance(table, dict) and all(type(count) is int for count in table.values())


def _table(title: str, *columns: str, text: int = 1) -> Table:
    """A table whose first columns are text and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < text else "right", overflow="fold")
    return table


def _overview(folder: Path, manifest: Entry) -> Table:
    totals, kind = manifest["totals"], manifests.kind_of(manifest)
    frames, tried, kept = counts_of(totals, kind)
    unit = manifests.UNITS[kind]
    table = _table("Dataset", "", plain(str(folder)))
    table.add_row(f"{unit} kept", f"{kept}", style="bold")
    table.add_row(f"{unit} tried", f"{tried}")
    table.add_row("yield", _share(kept, tried))
    if anchors := totals.get("yield", {}).get("anchors"):
        table.add_row("anchors with a partner", _share(totals["yield"].get("kept", 0), anchors))
        table.add_row("… at the fixed step", _share(totals["yield"].get("at the fixed step", 0), anchors))
    table.add_row("frames read", f"{frames}")
    table.add_row("scenes", f"{len(manifest['scenes'])}")
    if classes := manifest.get("classes"):
        table.add_row("classes", plain(", ".join(map(str, classes))))
    lengths, sizes, missing = _shards(folder, kind)
    if lengths:
        table.add_row("shards", f"{len(lengths)}, of {_range([str(length) for length in _ends(lengths)])} {unit}")
    if missing:
        table.add_row("shards that are missing", f"{len(missing)}: {plain(missing[0])}{', …' if missing[1:] else ''}")
    if sizes:
        table.add_row("size of a shard", _range([readable_size(size) for size in _ends(sizes)]))
    table.add_row("size on disk", readable_size(sum(_size(path) for path in files.inside(folder))))
    return table


def _shards(folder: Path, kind: str) -> tuple[list[int], list[int], list[str]]:
    """Records in each shard by the index, bytes of each that is there, and the names of those that are not."""
    try:
        index = json.loads((folder / dataset.INFO).read_text())
        lengths = [int(length) for length in index["splits"][0]["shardLengths"]]
    except FileNotFoundError:
        return [], [], []
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder / dataset.INFO}: damaged; copy it again or make the dataset again") from error
    paths = [folder / records.shard_name(dataset.SPLIT, number, len(lengths), kind) for number in range(len(lengths))]
    there = [path.is_file() for path in paths]
    sizes = [files.size(path) for path, is_there in zip(paths, there, strict=True) if is_there]
    return lengths, sizes, [path.name for path, is_there in zip(paths, there, strict=True) if not is_there]


def _size(path: Path) -> int:
    return sum(_size(inner) for inner in files.inside(path)) if path.is_dir() else files.size(path)


def _ends(numbers: list[int]) -> tuple[int, int]:
    return min(numbers), max(numbers)


def _range(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _settings(manifest: Entry) -> Table:
    runs = settings_of(manifest)
    table = _table("Settings", "setting", "value" if len(runs) < 2 else f"values of {len(runs)} merged runs", text=2)
    for key in dict.fromkeys(key for run in runs for key in run):
        values = dict.fromkeys(json.dumps(run.get(key), ensure_ascii=False).strip('"') for run in runs)
        table.add_row(plain(key), plain(" | ".join(values)))
    return table


def _versions(manifest: Entry) -> Table:
    table = _table("Versions", "tool", "version", text=2)
    for tool, version in manifest["versions"].items():
        table.add_row(plain(tool), plain(str(version)))
    return table


def _reasons(manifest: Entry) -> Table:
    totals, kind = manifest["totals"], manifests.kind_of(manifest)
    unit = manifests.UNITS[kind]
    table = _table(f"Why {unit} were not kept", "reason", unit, "of those tried")
    for reason, count in sorted(totals["rejected"].items(), key=lambda item: -item[1]):
        table.add_row(plain(reason), str(count), _share(count, counts_of(totals, kind)[1]))
    return table


def _counts(title: str, heading: str, entries: dict[str, Entry], kind: str) -> Table:
    unit = manifests.UNITS[kind]
    table = _table(title, heading, "frames read", f"{unit} tried", f"{unit} kept", "yield")
    for name, entry in entries.items():
        frames, tried, kept = counts_of(entry, kind)
        table.add_row(plain(name), str(frames), str(tried), str(kept), _share(kept, tried))
    return table


def _problems(scenes: list[tuple[str, dict[str, int]]], limit: int) -> Table:
    title = f"Problems, in {len(scenes)} scene{'s' if len(scenes) > 1 else ''}"
    table = _table(title, "scene", "problem", "times", text=2)
    for name, problems in scenes[:limit]:
        for problem, count in problems.items():
            table.add_row(plain(name), plain(problem), str(count))
    if len(scenes) > limit:
        table.add_row(f"… and {len(scenes) - limit} more (--scenes=N)", "", "")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def main(folder: str) -> None:
    """Runs the command."""
    place = files.as_path(folder)
    console = Console(markup=False, highlight=False, emoji=False)
    for table in tables(place, read_manifest(place), flags.FLAGS.scenes):
        console.print(table)


if __name__ == "__main__":
    flags.DEFINE_integer("scenes", 5, "Rows of each table of scenes.", lower_bound=0)
    command.run(main, positional=("DATASET",))
