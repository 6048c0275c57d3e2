"""Files that are there whole or not at all, on this machine's disks and in buckets (gs://…, through etils.epath)."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath


def as_path(path: str | os.PathLike) -> Path:
    """A path of this machine, or of a bucket where it begins with gs:// or the like; both have pathlib's methods.

    `~` is the home folder.
    """
    text = os.fspath(path)
    return epath.Path(text) if "://" in text else Path(text).expanduser()


def is_remote(path: Path) -> bool:
    """Whether a path is not of this machine's file system."""
    return "://" in os.fspath(path)


def size(path: Path) -> int:
    """Bytes of a file. Raises OSError where there is none."""
    return path.stat().length if is_remote(path) else path.stat().st_size


def inside(folder: Path) -> list[Path]:
    """What is in a folder, in order of names; nothing where there is no such folder, as a bucket has no empty ones."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def write(path: Path, pieces: bytes | Iterable[bytes]) -> None:
    """Writes a file, whole or not at all, replacing one that is there; when it returns, the file is on disk.

    In a bucket an object appears when it is whole, so there it is written as it is.
    """
    pieces = [pieces] if isinstance(pieces, bytes) else pieces
    if is_remote(path):
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        return
    # Of a disk that many machines share, not even the process number is this one's alone.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        # Of a full disk above all: what was half written would only take more room.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Puts a file in the place of another. In a bucket it is copied there first, and both may be there after a kill."""
    if is_remote(source):
        source.copy(target, overwrite=True)
        source.unlink()
    else:
        os.replace(source, target)


def sync(path: Path) -> None:
    """Waits until a file, or which files a folder holds, is on disk; nothing to do in a bucket."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def local(path: Path) -> Iterator[Path]:
    """The file on this machine, for libraries that read nothing else: itself, or a copy for as long as this lasts."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mimic_jax_") as folder:
        copy = Path(folder) / path.name
        with path.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
        yield copy
