"""A dataset folder that survives being killed at any moment, on a disk or in a bucket.

While it is made, `.parts/` holds one file for each finished scene: its records and its manifest entry, there whole or
not at all. To finish, the scenes already in the dataset and those in `.parts/` are written in natural order of their
names to `.ready/`, `moves.json` last; from then on its files are moved into place, `dataset_info.json` last. A run that
finds `.ready/moves.json` ends that move first; a `.ready/` without it is begun anew. While it is put together a dataset
takes its own size again on disk; afterwards manifest and shards are all there is.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep import manifests, shards
from data_prep.shards import DIGEST, PART, Piece, Shard
from data_prep.sources.scene import natural_key
from mimic_jax import files, records
from mimic_jax.command import InputError

SPLIT = "train"
PARTS, READY = records.PARTS, ".ready"
SETTINGS, MOVES, INFO = "settings.json", "moves.json", "dataset_info.json"

Entry = dict[str, Any]
# Calls a function on each of many things, in whatever order and place.
Each = Callable[[Callable[[Shard], None], Sequence[Shard]], None]


@contextlib.contextmanager
def opened(output: Path, settings: Entry) -> Iterator[None]:
    """Makes or reopens the folder for one run at a time, and ends a move that an earlier run did not.

    A bucket has no locks: there nobody else may write to the folder.

    Raises:
      InputError: the folder is something else's, was made with other settings, another run is writing to it, or there
        is no room left on its disk.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file; --output names a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made ({error.strerror})") from error
    with _locked(output):
        try:
            if (output / READY / MOVES).exists():
                _move_into_place(output)
            if (output / PARTS / SETTINGS).exists() and not _parts(output):
                remove(output / PARTS)
            _check(output, settings)
            remove(output / READY)
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
                raise InputError(
                    f"{output}: no room left on this disk; nothing finished is lost: free some and run the same command"
                ) from error
            if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                raise InputError(f"{output}: cannot be written ({error.strerror}); check its permissions") from error
            raise


def begin_parts(output: Path, settings: Entry) -> None:
    """Makes the place for `write_part`, marked with the settings."""
    (output / PARTS).mkdir(exist_ok=True)
    files.write(output / PARTS / SETTINGS, _json(settings))


def read_manifest(output: Path) -> Entry:
    """The manifest in place; one with no scenes where there is none yet."""
    try:
        return json.loads((output / records.MANIFEST).read_text())
    except FileNotFoundError:
        return {"scenes": {}}


def finished(output: Path) -> dict[str, Entry]:
    """The manifest entry of every scene that is done, by name."""
    scenes = dict(read_manifest(output)["scenes"])
    return scenes | {footer["scene"]: footer["entry"] for footer in _footers(_parts(output))}


def write_part(
    output: Path,
    scene: str,
    examples: Iterable[Any],
    entry: Entry,
    encode: Callable[[Any], bytes] = records.encode,
) -> None:
    """Puts a finished scene on disk, whole or not at all.

    Args:
      output: the dataset folder.
      scene: its name.
      examples: the scene's records, drawn and encoded one by one.
      entry: the scene's entry in the manifest; `examples` may fill it while they are drawn. It gains "bytes", those of
        the records.
      encode: the bytes of a record; `Schema.encode`, or that of pairs.
    """
    footer = {"scene": scene, "entry": entry, "versions": manifests.versions()}

    def encoded() -> Iterator[bytes]:
        entry["bytes"] = 0
        for example in examples:
            record = encode(example)
            entry["bytes"] += len(record)
            yield record

    name = hashlib.sha256(scene.encode()).hexdigest()[:32] + PART
    shards.write_part(output / PARTS / name, encoded(), footer)


def is_whole(output: Path, count: int | None) -> bool:
    """Whether the dataset in place holds every finished scene, in `count` shards (None: the number it would choose)."""
    manifest = read_manifest(output)
    if not manifest["scenes"] or _parts(output):
        return False
    wanted = shards.shard_count(manifests.kept(manifest), count)
    found = [path for path in files.inside(output) if _is_shard(path, manifests.kind_of(manifest))]
    return len(found) == wanted and (output / INFO).exists() == bool(wanted)


def assemble(
    output: Path,
    settings: Entry,
    schema: records.Schema,
    count: int | None,
    each: Each,
    facts: Entry | None = None,
) -> Entry:
    """Makes the dataset of what is in place and what is in `.parts/`; returns the manifest. Clears `.parts/`.

    Where no record was kept the manifest is all that is written.

    Args:
      output: the dataset folder.
      settings: what the dataset was made with.
      schema: of the records.
      count: shards; None for one each 10 000 records.
      each: does the shards, here or elsewhere.
      facts: more of the manifest, as {"classes": [names]}.

    Raises:
      InputError: a shard of the dataset in place is missing, cut short or damaged.
    """
    old = read_manifest(output)
    used = [old["versions"]] if old["scenes"] else []
    places = pieces_of(output)
    scenes = {name: (entry, next(places)) for name, entry in old["scenes"].items()}
    parts = _parts(output)
    for part, footer in zip(parts, _footers(parts), strict=True):
        scenes[footer["scene"]] = (
            footer["entry"],
            [Piece(part, 0, footer["entry"][records.count_names(schema.kind)[1]])],
        )
        used.append(footer["versions"])
    names = sorted(scenes, key=natural_key)
    manifest = manifests.manifest_of(schema.kind, settings, used, {name: scenes[name][0] for name in names}, facts)
    write(output, manifest, [piece for name in names for piece in scenes[name][1]], schema, count, each)
    return manifest


def write(
    output: Path, manifest: Entry, pieces: Sequence[Piece], schema: records.Schema, count: int | None, each: Each
) -> None:
    """Puts a dataset in the place of what is there, whole or not at all.

    Args:
      output: the dataset folder.
      manifest: of the dataset.
      pieces: where its records are, in order.
      schema, count, each: as for `assemble`.
    """
    ready = output / READY
    ready.mkdir(exist_ok=True)
    count = shards.shard_count(sum(piece.count for piece in pieces), count)
    if count:
        todo = shards.plan(
            pieces, [ready / records.shard_name(SPLIT, index, count, schema.kind) for index in range(count)]
        )
        if count == 1:
            shards.write_shard(todo[0])
        else:
            each(shards.write_shard, todo)
        lengths = [sum(piece.count for piece in shard.pieces) for shard in todo]
        num_bytes = sum(entry.get("bytes", 0) for entry in manifest["scenes"].values())
        records.write_index(ready, split=SPLIT, shard_lengths=lengths, num_bytes=num_bytes, schema=schema)
        digests = [shard.file.with_name(shard.file.name + DIGEST).read_text() for shard in todo]
        files.write(ready / records.DIGESTS, _json({"sha256": digests}))
    files.write(ready / records.MANIFEST, _json(manifest))
    for path in files.inside(ready):
        files.sync(path)
    # A worker that was given up but lives on may have left a file half written.
    names = [path.name for path in files.inside(ready) if not path.name.endswith((".tmp", DIGEST))]
    names.sort(key=lambda name: (name == INFO, name))
    files.write(ready / MOVES, _json(names))
    files.sync(output)
    _move_into_place(output)


def pieces_of(folder: Path) -> Iterator[list[Piece]]:
    """Where the records of each scene are stored in a finished dataset, in the order of its manifest.

    What was written counts, not what is there: with a shard missing, the records of one scene would pass for another's.
    """
    manifest = read_manifest(folder)
    kind = manifests.kind_of(manifest)
    if not any(map(len, records.scene_spans(manifest).values())):
        yield from ([] for _ in manifest["scenes"])
        return
    lengths = [int(length) for length in json.loads((folder / INFO).read_text())["splits"][0]["shardLengths"]]
    index = first = 0
    for span in records.scene_spans(manifest).values():
        wanted, pieces = len(span), []
        while wanted:
            if first == lengths[index]:
                index, first = index + 1, 0
                continue
            taken = min(wanted, lengths[index] - first)
            shard = folder / records.shard_name(SPLIT, index, len(lengths), kind)
            pieces.append(Piece(shard, first, taken, lengths[index]))
            first, wanted = first + taken, wanted - taken
        yield pieces


def remove(folder: Path) -> None:
    """Removes a folder and what is in it, if it is there."""
    if folder.exists():
        folder.rmtree(missing_ok=True) if files.is_remote(folder) else shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    if files.is_remote(output):
        yield
        return
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"{output}: another run is writing to this folder; wait for it to end") from error
    except OSError:
        pass  # A file system without locks.
    try:
        yield
    finally:
        os.close(descriptor)


def _check(output: Path, settings: Entry) -> None:
    earlier = None
    for path in (output / records.MANIFEST, output / PARTS / SETTINGS):
        try:
            content = json.loads(path.read_text())
            earlier = content["settings"] if path.name == records.MANIFEST else content
            break
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not written by mine or label; give another --output") from error
    if earlier is None:
        strange = [path.name for path in files.inside(output) if path.name not in (PARTS, READY)]
        if strange:
            raise InputError(
                f"{output}: holds other things ({', '.join(strange[:3])}{', …' if strange[3:] else ''}); "
                "--output must be new, empty, or a dataset that the same command began"
            )
        return
    if ("merged" in earlier) != ("merged" in settings):
        raise InputError(f"{output}: a merged dataset; give another --output, and merge anew")
    was, wanted = (of.get("records", records.NAME) for of in (earlier, settings))
    if was != wanted:
        raise InputError(f"{output}: a dataset of {was}, not of {wanted}; give another --output")
    different = [key for key in settings if settings[key] != earlier.get(key)]
    if different:
        was, wanted = (" ".join(f"--{key}={_as_flag(of.get(key))}" for key in different) for of in (earlier, settings))
        raise InputError(f"{output}: was made with {was}, not {wanted}; give those, another --output, or remove it")


def _as_flag(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(each if isinstance(each, str) else f"{each:g}" for each in value)
    return str(value)


def _parts(output: Path) -> list[Path]:
    return [path for path in files.inside(output / PARTS) if path.name.endswith(PART)]


def _footers(parts: list[Path]) -> list[Entry]:
    # In a bucket each takes the time of a request or two.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(shards.read_footer, parts))


def _move_into_place(output: Path) -> None:
    """Moves the files of `.ready/` to the dataset; every step can be done again after a kill."""
    ready = output / READY
    names = json.loads((ready / MOVES).read_text())
    if (ready / INFO).exists() or INFO not in names:
        (output / INFO).unlink(missing_ok=True)
        files.sync(output)
    for path in files.inside(output):
        is_index = path.name in ("features.json", records.DIGESTS)
        if (is_index or any(_is_shard(path, kind) for kind in manifests.UNITS)) and path.name not in names:
            path.unlink(missing_ok=True)
    for name in names:
        if name == INFO:
            files.sync(output)
        if (ready / name).exists():
            files.move(ready / name, output / name)
    files.sync(output)
    remove(output / PARTS)
    (ready / MOVES).unlink()
    remove(ready)


def _is_shard(path: Path, kind: str) -> bool:
    return path.name.startswith(f"{kind}-{SPLIT}.array_record-")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
