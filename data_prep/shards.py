"""Shards of a dataset, put together from runs of records that lie in other files, each shard by itself."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimic_jax import files
from mimic_jax.command import InputError

RECORDS_PER_SHARD = 10_000
PART = ".part"
# Beside a shard until the dataset is put together: the digest of its records.
DIGEST = ".sha256"
# At the end of a part: the length of the JSON before it, and these eight bytes.
_TAIL = struct.Struct("<Q8s")
_MARK = b"mimicprt"
_LENGTH = struct.Struct("<Q")
_REMEDY = "put a copy of it back, or remove the folder and make the dataset again"


@dataclasses.dataclass(frozen=True)
class Piece:
    """`count` records from number `first` on of a part, or of a shard that should hold `length` records."""

    file: Path
    first: int
    count: int
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to write and what is to be in it."""

    file: Path
    pieces: tuple[Piece, ...]


def shard_count(records: int, shards: int | None) -> int:
    """`shards`, or one for each 10 000 records; never more than there are records."""
    return min(records, shards or -(-records // RECORDS_PER_SHARD))


def plan(pieces: Iterable[Piece], names: list[Path]) -> list[Shard]:
    """Deals the records of all pieces, in their order, to as many shards as there are names, evenly."""
    pieces = [piece for piece in pieces if piece.count]
    lengths = [len(part) for part in np.array_split(range(sum(piece.count for piece in pieces)), len(names))]
    rest = iter(pieces)
    piece, shards = None, []
    for name, length in zip(names, lengths, strict=True):
        taken: list[Piece] = []
        while length:
            piece = piece or next(rest)
            count = min(piece.count, length)
            before = taken[-1] if taken else None
            if before and before.file == piece.file and before.first + before.count == piece.first:
                # Scenes that follow one another in a shard are read in one go.
                taken[-1] = dataclasses.replace(before, count=before.count + count)
            else:
                taken.append(dataclasses.replace(piece, count=count))
            length, left = length - count, piece.count - count
            piece = dataclasses.replace(piece, first=piece.first + count, count=left) if left else None
        shards.append(Shard(name, tuple(taken)))
    return shards


def write_shard(shard: Shard) -> None:
    """Writes one shard, and the digest of its records beside it (`DIGEST`); when it returns, both are on disk.

    Raises:
      InputError: what it is made of is missing or damaged.
      OSError: it cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        # A file in a bucket is copied here once, however many of its pieces are needed.
        local_copy = functools.cache(lambda file: stack.enter_context(files.local(file)))
        temporary = shard.file.with_name(f"{shard.file.name}.{uuid.uuid4().hex}.tmp")
        # ArrayRecord writes to this machine alone.
        if files.is_remote(shard.file):
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mimic_jax_"))) / shard.file.name
        try:
            # One record a group: readers fetch single records in random order.
            writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
            for piece in shard.pieces:
                for record in read_piece(piece, local_copy):
                    writer.write(record)
                    # With its length, so that no other cut into records has the same digest.
                    digest.update(_LENGTH.pack(len(record)))
                    digest.update(record)
            writer.close()
        except RuntimeError as error:  # ArrayRecord's only one, a full disk included
            raise OSError(f"{shard.file}: cannot be written ({' '.join(str(error).split())})") from error
        if files.is_remote(shard.file):
            with temporary.open("rb") as source, shard.file.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
        else:
            files.sync(temporary)
            os.replace(temporary, shard.file)
    files.write(shard.file.with_name(shard.file.name + DIGEST), digest.hexdigest().encode())


def read_piece(piece: Piece, local_copy: Callable[[Path], Path]) -> Iterator[bytes]:
    """The records of a piece; `local_copy` gives the file on this machine.

    Raises:
      InputError: the file is missing, cut short or damaged.
    """
    is_part = piece.file.name.endswith(PART)
    if not piece.file.is_file():
        raise InputError(f"{piece.file}: this {'part' if is_part else 'shard'} is missing; {_REMEDY}")
    yield from (_part_records if is_part else _shard_records)(piece, local_copy(piece.file))


def write_part(file: Path, records: Iterable[bytes], footer: dict[str, Any]) -> None:
    """Writes the records and then `footer`, as it is once the last record has been drawn, whole or not at all."""

    def pieces() -> Iterator[bytes]:
        for record in records:
            yield _LENGTH.pack(len(record))
            yield record
        last = json.dumps(footer).encode()
        yield last
        yield _TAIL.pack(len(last), _MARK)

    files.write(file, pieces())


def read_footer(file: Path) -> dict[str, Any]:
    """The footer of a part.

    Raises:
      InputError: the part is damaged.
    """
    with file.open("rb") as part:
        try:
            part.seek(-_TAIL.size, os.SEEK_END)
            length, mark = _TAIL.unpack(part.read(_TAIL.size))
            part.seek(-_TAIL.size - length, os.SEEK_END)
            if mark == _MARK:
                return json.loads(part.read(length))
        except (OSError, ValueError):
            pass
    raise InputError(f"{file}: this file is damaged; remove it and run the same command: its scene is done again")


def _part_records(piece: Piece, local: Path) -> Iterator[bytes]:
    with local.open("rb") as part:
        for number in range(piece.first + piece.count):
            (length,) = _LENGTH.unpack(part.read(_LENGTH.size))
            if number < piece.first:
                part.seek(length, os.SEEK_CUR)
            else:
                yield part.read(length)


def _shard_records(piece: Piece, local: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(local))
        # Of a shard that is cut short the reader sees no records at all.
        if reader.num_records() != piece.length:
            raise ValueError(f"{reader.num_records()} of {piece.length} records can be found")
        stop = piece.first + piece.count
        for first in range(piece.first, stop, 64):
            yield from reader.read(first, min(first + 64, stop))
        reader.close()
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise InputError(f"{piece.file}: this shard is cut short or damaged; {_REMEDY} ({error})") from error
