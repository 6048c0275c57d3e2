"""MIMIC's released pairs: DATASET/SCENE/PAIR/{0000.jpg, 0001.jpg, corresponding.npy}, found on disk or by a CSV."""

import array
import csv
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from data_prep.overlap import NO_PATCH
from data_prep.settings import Settings
from data_prep.sources import images, integer_dict
from data_prep.sources.images import ImageProblem
from data_prep.sources.scene import ReadyPair, Scene, SceneProblem, natural_key, unreadable_folder
from mimic_jax import files
from mimic_jax.command import InputError

VIEW1, VIEW2, CORRESPONDENCE = "0000.jpg", "0001.jpg", "corresponding.npy"
COLUMNS = ("path1", "path2", "correspondence")
# The views were matched as 14 × 14 patches, whatever size they are stored at.
PATCHES = 196
# No path is longer on any system; the pieces of a longer line are taken for rows.
MAX_PATH, MAX_LINE = 4096, 2**16


def scenes(input: Path, settings: Settings) -> list[Scene]:
    """One scene for each DATASET/SCENE, of which it has the name, in natural order.

    A folder whose folders hold 0000.jpg and 0001.jpg is a SCENE, and the folder above it its DATASET. A folder without
    folders or pairs is a scene without pairs, and one that cannot be listed is a scene that cannot be read, both named
    by their path with a slash behind, so that they are counted.

    A CSV has a header with path1 and path2, and may have correspondence. Its paths begin at its own folder. They may
    be absolute; those that are not there, as of another machine, are sought by their last four parts in its folder.
    Rows that name no pair are counted by a scene that is named like the CSV, with a slash behind.

    Where there is no corresponding.npy, nor one named, the correspondence is not known.

    Args:
      input: one DATASET, a folder of several, or a CSV.
      settings: `quality` is used for images that are no RGB JPEGs; correspondences are read under the policy "ready".

    Raises:
      InputError: there is no pair, two scenes would have one name, the CSV lacks a column, or the patches that the
        settings ask for are not those of the release.
    """
    if settings.policy == "ready" and settings.patches != PATCHES:
        raise InputError(
            f"--image_size={settings.image_size} --patch_size={settings.patch_size}: the pairs of MIMIC's release have "
            "14 × 14 patches; keep 224 and 16, or give --policy=tested to match them anew"
        )
    if not input.is_dir():
        if input.suffix.lower() != ".csv" or not input.is_file():
            raise InputError(f"{input}: --source=mimic_release needs a folder of pairs, or a .csv that lists them")
        listed = _listed_scenes(input, settings)
    else:
        listed = _found_scenes(input, settings)
    if not any(scene.source is not None or scene.input_size < 0 for scene in listed):
        raise InputError(f"{input}: no pairs in it (looked for DATASET/SCENE/PAIR/{VIEW1} and {VIEW2})")
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def read_folder(folder: Path, settings: Settings) -> Iterator[ReadyPair]:
    """The pairs of a SCENE, in natural order of their names.

    Raises:
      SceneProblem: the folder cannot be listed.
    """
    try:
        pairs = _folders(folder)
    except OSError:
        raise SceneProblem("folder cannot be read") from None
    for pair in pairs:
        yield _pair(pair / VIEW1, pair / VIEW2, None, settings)


def read_rows(table: Path, places: array.array, settings: Settings) -> Iterator[ReadyPair]:
    """The pairs on the rows of a CSV that begin at these bytes, in natural order of the first path."""
    with table.open("rb") as file:
        columns = _columns(next(_rows(file))[1], table)
        rows = []
        for place in places:
            file.seek(place)
            row = next(_rows(file))[1]
            rows.append(tuple(row[column] if column < len(row) else "" for column in columns))
    before = None
    for row in sorted(rows, key=lambda row: (natural_key(row[0][:MAX_PATH]), row)):
        # A name of a correspondence may be missing, not be wrong.
        if not all(map(_parts, filter(None, row))) or not all(row[:2]):
            yield ReadyPair(b"", b"", problem="row does not name a pair")
        elif row == before:
            yield ReadyPair(b"", b"", problem="row given twice")
        else:
            path1, path2, *known = (_find(table.parent, name) for name in row if name)
            yield _pair(path1, path2, known[0] if known else None, settings)
        before = row


def correspondence(path: Path, patches: int) -> Int16[np.ndarray, " patches"]:
    """For each patch of view1 the patch of view2, −1 where none, from a `corresponding.npy`. Nothing in it is run.

    Raises:
      ValueError: the file is not a dict of distinct patches; the message is the reason counted.
      OSError: it cannot be opened.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{CORRESPONDENCE} is not a regular file")
    if files.size(path) > integer_dict.MAX_BYTES:
        raise ValueError(f"{CORRESPONDENCE} is too large")
    try:
        found = integer_dict.load(path.read_bytes())
    except ValueError:
        raise ValueError(f"{CORRESPONDENCE} is not a dict of integers") from None
    if not all(0 <= patch < patches for pair in found.items() for patch in pair):
        raise ValueError(f"{CORRESPONDENCE} names patches that there are not")
    if len(set(found.values())) < len(found):
        raise ValueError(f"{CORRESPONDENCE} gives a patch of view 2 twice")
    result = np.full(patches, NO_PATCH, np.int16)
    result[list(found.keys())] = list(found.values())
    return result


def _found_scenes(input: Path, settings: Settings) -> list[Scene]:
    found: dict[str, tuple[Path, Scene]] = {}
    others, seen, waiting = [], set(), [input]
    while waiting:
        folder = waiting.pop()
        # A bucket has no links.
        real = os.fspath(folder) if files.is_remote(folder) else os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            inside = _folders(folder)
            # Not all are looked at: there may be millions, and a damaged pair among them is counted when it is read.
            is_scene = any(map(_is_pair, inside))
        except OSError as error:
            if folder == input:
                raise InputError(f"{input}: cannot be read ({error.strerror}); check its permissions") from error
            others.append(Scene(f"{folder.relative_to(input).as_posix()}/", -1, unreadable_folder))
            continue
        if is_scene:
            whole = folder if len(folder.relative_to(input).parts) > 1 else input.resolve() / folder.relative_to(input)
            dataset = whole.parent.name
            name = f"{dataset}/{whole.name}"
            if name in found:
                raise InputError(f"{found[name][0]} and {folder} would both be scene {name!r}: rename one of them")
            samples = functools.partial(read_folder, folder, settings)
            found[name] = folder, Scene(name, len(inside), samples, source=dataset)
        elif inside:
            waiting += inside
        elif folder != input:
            others.append(Scene(f"{folder.relative_to(input).as_posix()}/", 0, _no_pairs))
    return [scene for _, scene in found.values()] + others


def _listed_scenes(table: Path, settings: Settings) -> list[Scene]:
    """A row costs its place in the file, eight bytes; a scene is read by its own rows alone."""
    found: dict[tuple[str, ...], array.array] = {}
    try:
        with table.open("rb") as file:
            rows = _rows(file)
            first = _columns(next(rows, (0, []))[1], table)[0]
            for place, row in rows:
                if row:
                    parts = _parts(row[first]) if first < len(row) else None
                    scene = (parts[-4], parts[-3]) if parts else ()
                    if scene not in found:
                        found[scene] = array.array("q")
                    found[scene].append(place)
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror}); check its permissions") from error
    return [
        Scene(
            "/".join(scene) if scene else f"{table.name}/",
            len(places),
            functools.partial(read_rows, table, places, settings),
            source=scene[0] if scene else None,
        )
        for scene, places in found.items()
    ]


def _rows(file) -> Iterator[tuple[int, list[str]]]:
    """Each row of a CSV from here on and the byte where it begins; one that cannot be parsed is [""]."""
    place = file.tell()

    def lines() -> Iterator[str]:
        nonlocal place
        for line in iter(functools.partial(file.readline, MAX_LINE), b""):
            place += len(line)
            yield line.decode("utf-8-sig" if place == len(line) else "utf-8", "replace")

    rows = csv.reader(lines())
    while True:
        begin = place
        try:
            yield begin, next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield begin, [""]


def _columns(header: list[str], table: Path) -> list[int]:
    missing = [name for name in COLUMNS[:2] if name not in header]
    if missing:
        raise InputError(f"{table}: has no column {' or '.join(missing)}; the first line names path1 and path2")
    return [header.index(name) for name in COLUMNS if name in header]


def _parts(path: str) -> list[str] | None:
    """Some parts of a path of at least four, of which the last four are whole names; None for what is none."""
    parts = path.rsplit("/", 4)
    if len(parts) < 4 or not all(parts[-4:]) or len(path) >= MAX_PATH or "\0" in path or "\ufffd" in path:
        return None
    return None if ".." in path and ".." in path.split("/") else parts


def _find(folder: Path, name: str) -> Path:
    path = folder / name
    if "://" in name or not images.is_file(path):
        return folder.joinpath(*name.split("/")[-4:])
    return path


def _pair(path1: Path, path2: Path, known: Path | None, settings: Settings) -> ReadyPair:
    """known: the file of the correspondence, where one is named; it may lie beside the first view."""
    patches = None
    try:
        view1, view2 = (images.read_jpeg(path, settings.quality) for path in (path1, path2))
        if settings.policy == "ready":
            beside = path1.parent / CORRESPONDENCE
            if known or beside.exists():
                patches = correspondence(known or beside, settings.patches)
    except (ImageProblem, ValueError) as problem:
        return ReadyPair(b"", b"", problem=str(problem))
    except OSError as error:
        reason = f"{CORRESPONDENCE} cannot be opened ({error.strerror or type(error).__name__})"
        return ReadyPair(b"", b"", problem=reason)
    return ReadyPair(view1, view2, patches)


def _folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, in natural order."""
    inside = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    return sorted(inside, key=lambda path: natural_key(path.name))


def _is_pair(folder: Path) -> bool:
    return images.is_file(folder / VIEW1) and images.is_file(folder / VIEW2)


def _no_pairs() -> Iterator[ReadyPair]:
    raise SceneProblem("no pairs")
