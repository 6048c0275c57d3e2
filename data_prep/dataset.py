"""A dataset folder that survives being killed at any moment.

While it is mined, `.parts/` holds one file for each finished scene: its manifest entry and its records, written under
another name and renamed, so that a scene is there whole or not at all. To finish, the scenes already in the dataset and
those in `.parts/` are written in natural order of their names to `.assembly/`, which is renamed `.ready/` once it is on
disk; its files are then moved into place, `dataset_info.json` last. A run that finds `.ready/` ends that move first.
While it is assembled a dataset takes its own size again on disk; afterwards manifest and shards are all there is.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.sources.scene import natural_key
from mimic_jax import records
from mimic_jax.command import InputError

SPLIT = "train"
PAIRS_PER_SHARD = 10_000
PARTS, ASSEMBLY, READY = ".parts", ".assembly", ".ready"
SETTINGS, MOVES, INFO = "settings.json", "moves.json", "dataset_info.json"

Entry = dict[str, Any]


@contextlib.contextmanager
def opened(output: Path, settings: Entry) -> Iterator[None]:
    """Makes or reopens the folder for one run at a time, and ends a move that an earlier run did not.

    Raises:
      InputError: the folder is something else's, was mined with other settings, or another run is writing to it.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file; --output names a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made ({error.strerror})") from error
    descriptor = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{output}: another run is writing to this folder; wait for it to end") from error
        except OSError:
            pass  # A file system without locks.
        if (output / READY).is_dir():
            _move_into_place(output)
        if (output / PARTS / SETTINGS).exists() and not _parts(output):
            shutil.rmtree(output / PARTS)
        _check(output, settings)
        shutil.rmtree(output / ASSEMBLY, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def begin_parts(output: Path, settings: Entry) -> None:
    """Makes the place for `write_part`, marked with the settings."""
    (output / PARTS).mkdir(exist_ok=True)
    _write(output / PARTS / SETTINGS, _json(settings))


def read_manifest(output: Path) -> Entry:
    """The manifest in place; one with no scenes where there is none yet."""
    try:
        return json.loads((output / records.MANIFEST).read_text())
    except FileNotFoundError:
        return {"scenes": {}}


def finished(output: Path) -> dict[str, Entry]:
    """The manifest entry of every scene that need not be mined again, by name."""
    scenes = dict(read_manifest(output)["scenes"])
    for part in _parts(output):
        header = _read_header(part)
        scenes[header["scene"]] = header["entry"]
    return scenes


def write_part(output: Path, scene: str, entry: Entry, pairs: Iterable[records.Pair]) -> None:
    """Puts a mined scene on disk, whole or not at all; `pairs` are encoded one by one."""
    header = {"scene": scene, "entry": entry, "versions": versions()}
    pieces = (piece for record in map(records.encode, pairs) for piece in (struct.pack("<Q", len(record)), record))
    name = hashlib.sha256(scene.encode()).hexdigest()[:32] + ".part"
    _write(output / PARTS / name, json.dumps(header).encode() + b"\n", pieces)


def is_whole(output: Path, shards: int | None) -> bool:
    """Whether the dataset already holds every finished scene, in `shards` shards (None: the number it would choose)."""
    manifest = read_manifest(output)
    if not manifest["scenes"] or _parts(output):
        return False
    present = len(list(output.glob(_shard_pattern())))
    return present == shard_count(manifest["totals"]["pairs_kept"], shards)


def shard_count(pairs: int, shards: int | None) -> int:
    """`shards`, or one for each 10 000 pairs; never more than there are pairs."""
    return min(pairs, shards or -(-pairs // PAIRS_PER_SHARD))


def assemble(output: Path, settings: Entry, patches: int, shards: int | None) -> Entry:
    """Makes the dataset of what is in place and what is in `.parts/`; returns the manifest. Clears `.parts/`.

    Where no pair was kept the manifest is all that is written.

    Raises:
      InputError: a shard of the dataset in place is missing, cut short or damaged.
    """
    old = read_manifest(output)
    used = [old["versions"]] if old["scenes"] else []
    sources: dict[str, tuple[Entry, Path | int]] = {}
    position = 0
    for name, entry in old["scenes"].items():
        sources[name] = (entry, position)
        position += entry["pairs_kept"]
    for part in _parts(output):
        header = _read_header(part)
        sources[header["scene"]] = (header["entry"], part)
        used.append(header["versions"])
    names = sorted(sources, key=natural_key)
    scenes = {name: sources[name][0] for name in names}
    manifest = {
        "settings": settings,
        "versions": {tool: ", ".join(sorted({each[tool] for each in used})) for tool in versions()},
        "totals": totals(scenes.values()),
        "scenes": scenes,
    }

    assembly = output / ASSEMBLY
    assembly.mkdir()
    count = shard_count(manifest["totals"]["pairs_kept"], shards)
    if count:
        stream = (
            record
            for entry, source in (sources[name] for name in names)
            for record in (
                _part_records(source) if isinstance(source, Path) else _old_records(output, source, entry["pairs_kept"])
            )
        )
        lengths = [len(piece) for piece in np.array_split(range(manifest["totals"]["pairs_kept"]), count)]
        num_bytes = _write_shards(assembly, stream, lengths)
        records.write_index(assembly, split=SPLIT, shard_lengths=lengths, num_bytes=num_bytes, patches=patches)
    _write(assembly / records.MANIFEST, _json(manifest))
    moves = sorted((path.name for path in assembly.iterdir()), key=lambda name: (name == INFO, name))
    _write(assembly / MOVES, _json(moves))
    for path in assembly.iterdir():
        _sync(path)
    _sync(assembly)
    os.rename(assembly, output / READY)
    _sync(output)
    _move_into_place(output)
    return manifest


def totals(entries: Iterable[Entry]) -> Entry:
    """Sums of the counts of many scenes."""
    total: Entry = {"scenes": 0, "frames_read": 0, "pairs_tried": 0, "pairs_kept": 0, "rejected": {}, "problems": {}}
    for entry in entries:
        total["scenes"] += 1
        for key in ("frames_read", "pairs_tried", "pairs_kept"):
            total[key] += entry[key]
        for key in ("rejected", "problems"):
            for reason, count in entry[key].items():
                total[key][reason] = total[key].get(reason, 0) + count
    for key in ("rejected", "problems"):
        total[key] = dict(sorted(total[key].items()))
    return total


def versions() -> dict[str, str]:
    """The versions of the tools that decide what a dataset holds."""
    return {
        "data_prep": importlib.metadata.version("mimic_jax"),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
    }


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
            raise InputError(f"{path}: not written by mine; give another --output") from error
    if earlier is None:
        ours = {PARTS, ASSEMBLY}
        strange = sorted(path.name for path in output.iterdir() if path.name not in ours)
        if strange:
            raise InputError(
                f"{output}: holds other things ({', '.join(strange[:3])}{', …' if strange[3:] else ''}); "
                "--output must be new, empty, or a dataset that mine began"
            )
        return
    for key in settings:
        if settings[key] != earlier.get(key):
            raise InputError(
                f"{output}: was mined with --{key}={earlier.get(key)}, not {settings[key]}; "
                f"give that --{key}, another --output, or remove the folder"
            )


def _parts(output: Path) -> list[Path]:
    return sorted((output / PARTS).glob("*.part"))


def _read_header(part: Path) -> Entry:
    with part.open("rb") as file:
        return json.loads(file.readline())


def _part_records(part: Path) -> Iterator[bytes]:
    with part.open("rb") as file:
        file.readline()
        while size := file.read(8):
            yield file.read(struct.unpack("<Q", size)[0])


def _old_records(output: Path, start: int, count: int) -> Iterator[bytes]:
    """Records start … start + count of the dataset in place."""
    if not count:
        return
    # What was written, not what is there: with a shard missing, the records of one scene would pass for another's.
    lengths = [int(length) for length in json.loads((output / INFO).read_text())["splits"][0]["shardLengths"]]
    for index, length in enumerate(lengths):
        if count and start < length:
            shard = output / records.shard_name(SPLIT, index, len(lengths))
            stop = min(start + count, length)
            yield from _shard_records(shard, length, start, stop)
            count, start = count - (stop - start), stop
        start -= length


def _shard_records(shard: Path, length: int, start: int, stop: int) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    if not shard.is_file():
        raise InputError(f"{shard}: this shard is missing; put a copy of it back, or remove the folder and mine again")
    try:
        reader = ArrayRecordReader(os.fspath(shard))
        # Of a shard that is cut short the reader sees no records at all.
        if reader.num_records() != length:
            raise ValueError(f"{reader.num_records()} of {length} records can be found")
        for first in range(start, stop, 64):
            yield from reader.read(first, min(first + 64, stop))
        reader.close()
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise InputError(
            f"{shard}: this shard is cut short or damaged; put a copy of it back, or remove the folder and mine again "
            f"({error})"
        ) from error


def _write_shards(folder: Path, stream: Iterator[bytes], lengths: list[int]) -> int:
    from array_record.python.array_record_module import ArrayRecordWriter

    num_bytes = 0
    for index, length in enumerate(lengths):
        # One record a group: readers fetch single records in random order.
        writer = ArrayRecordWriter(os.fspath(folder / records.shard_name(SPLIT, index, len(lengths))), "group_size:1")
        for _ in range(length):
            record = next(stream, None)
            if record is None:
                raise InputError(f"{folder.parent}: a shard is missing or cut short; remove the folder and mine again")
            writer.write(record)
            num_bytes += len(record)
        writer.close()
    return num_bytes


def _move_into_place(output: Path) -> None:
    """Moves the files of `.ready/` to the dataset; every step can be done again after a kill."""
    ready = output / READY
    if (ready / MOVES).exists():
        names = json.loads((ready / MOVES).read_text())
        if (ready / INFO).exists() or INFO not in names:
            (output / INFO).unlink(missing_ok=True)
            _sync(output)
        for path in [*output.glob(_shard_pattern()), output / "features.json"]:
            if path.name not in names:
                path.unlink(missing_ok=True)
        for name in names:
            if name == INFO:
                _sync(output)
            if (ready / name).exists():
                os.replace(ready / name, output / name)
        _sync(output)
        shutil.rmtree(output / PARTS, ignore_errors=True)
        (ready / MOVES).unlink()
    shutil.rmtree(ready)


def _shard_pattern() -> str:
    return f"{records.NAME}-{SPLIT}.array_record-*"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, start: bytes, pieces: Iterable[bytes] = ()) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(start)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
