"""CroCo's listings of ready pairs: `pairs.txt` of habitat_release and `listing.txt` of the crops.

`pairs.txt` has two paths a line, with or without suffix; `listing.txt` one stem a line, of STEM_1.jpg and STEM_2.jpg.
Paths begin at the listing's own folder and stay inside it. Empty lines, and those that start with #, say nothing.
"""

import array
import functools
from collections.abc import Iterator
from pathlib import Path

from data_prep.settings import Settings
from data_prep.sources import images
from data_prep.sources.images import ImageProblem
from data_prep.sources.scene import ReadyPair, Scene, SceneProblem, natural_key, unreadable_folder, walk
from mimic_jax.command import InputError

PAIRS, STEMS = "pairs.txt", "listing.txt"
PAIRS_PER_SCENE = 1000
# Bytes. A longer line names no pair.
MAX_LINE = 4096
# What files may end in where the listing does not say.
_ENDINGS = ("", ".jpeg", ".jpg")


def scenes(input: Path, settings: Settings) -> list[Scene]:
    """The pairs of a listing, or of all listings in a folder, 1000 to a scene, in natural order.

    A scene is LISTING/FOLDER/NUMBER: the listing's path inside `input`, the folder of the pairs' first images as the
    listing spells it, and a count from 0. Pairs appended to a listing leave the scenes before them as they are.
    A line that names no pair belongs to the scene of the line before it, and is counted there.

    Args:
      input: pairs.txt, listing.txt, or a folder with such files anywhere in it.
      settings: `quality` is used, for images that are no RGB JPEGs.

    Raises:
      InputError: there is no listing, or nothing in it.
    """
    unreadable: list[Path] = []
    if input.is_file():
        if input.name not in (PAIRS, STEMS):
            raise InputError(f"{input}: --source=croco_listing reads files named {PAIRS} or {STEMS}")
        found, root = [input], input.parent
    else:
        found = [folder / name for folder, names, _ in walk(input, unreadable) for name in names]
        found, root = [path for path in found if path.name in (PAIRS, STEMS)], input
        if not found and not unreadable:
            raise InputError(f"{input}: no {PAIRS} or {STEMS} in it")
    listed = [Scene(f"{folder.relative_to(root).as_posix()}/", -1, unreadable_folder) for folder in unreadable]
    for listing in found:
        name = listing.relative_to(root).as_posix()
        try:
            # A pipe would be waited for.
            if not listing.is_file():
                raise FileNotFoundError
            listed += _scenes_of(listing, name, settings.quality)
        except OSError as error:
            if listing == input:
                raise InputError(f"{input}: cannot be read ({error.strerror}); check its permissions") from error
            listed.append(Scene(f"{name}/", -1, _unreadable_listing))
    if not listed:
        raise InputError(f"{input}: no pairs listed in it")
    return sorted(listed, key=lambda scene: natural_key(scene.name))


def read(listing: Path, places: array.array, quality: int) -> Iterator[ReadyPair]:
    """The pairs on the lines of `listing` that begin at these bytes. No correspondence is known."""
    with listing.open("rb") as file:
        for place in places:
            file.seek(place)
            yield _pair(listing.parent, pair_of(file.readline(MAX_LINE), listing.name == STEMS), quality)


def pair_of(line: bytes, stem: bool) -> tuple[str, str] | str:
    """The names of the two images on a line of `pairs.txt`, or of `listing.txt` where `stem`; or why there are none."""
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "line is not UTF-8"
    names = [f"{text}_1", f"{text}_2"] if stem else text.split("\t" if "\t" in text else None)
    if len(names) != 2 or not all(names) or "\0" in text or len(line) >= MAX_LINE:
        return "line does not name a pair"
    for name in names:
        # A listing comes from elsewhere, and has no business with other files of this machine.
        if name.startswith("/") or "://" in name or (".." in name and ".." in name.split("/")):
            return "line leaves the listing's folder"
    return names[0], names[1]


def _scenes_of(listing: Path, name: str, quality: int) -> list[Scene]:
    """A line costs its place in the file, eight bytes; a scene is read by its own lines alone."""
    stem = listing.name == STEMS
    chunks: dict[str, list[array.array]] = {}
    folder, place, whole = "", 0, True
    with listing.open("rb") as file:
        for line in iter(functools.partial(file.readline, MAX_LINE), b""):
            # What follows the first piece of a line that is too long is none.
            if whole and not line.isspace() and not line.startswith(b"#"):
                names = pair_of(line, stem)
                if isinstance(names, tuple):
                    folder = names[0].rpartition("/")[0]
                places = chunks.setdefault(folder, [])
                if not places or len(places[-1]) == PAIRS_PER_SCENE:
                    places.append(array.array("q"))
                places[-1].append(place)
            place += len(line)
            whole = line.endswith(b"\n")
    return [
        Scene(
            f"{name}/{folder}/{index}" if folder else f"{name}/{index}",
            len(places),
            functools.partial(read, listing, places, quality),
        )
        for folder, parts in chunks.items()
        for index, places in enumerate(parts)
    ]


def _pair(folder: Path, names: tuple[str, str] | str, quality: int) -> ReadyPair:
    if isinstance(names, str):
        return ReadyPair(b"", b"", problem=names)
    try:
        view1, view2 = (images.read_jpeg(_find(folder, name), quality) for name in names)
    except ImageProblem as problem:
        return ReadyPair(b"", b"", problem=str(problem))
    return ReadyPair(view1, view2)


def _find(folder: Path, name: str) -> Path:
    if Path(name).suffix.lower() in images.SUFFIXES:
        return folder / name
    candidates = [folder / f"{name}{ending}" for ending in _ENDINGS]
    return next((path for path in candidates if images.is_file(path)), candidates[0])


def _unreadable_listing() -> Iterator[ReadyPair]:
    raise SceneProblem("listing cannot be read")
