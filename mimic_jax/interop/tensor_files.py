"""Files of named tensors: safetensors, and PyTorch's .pth. Nothing in a file that is read is ever executed."""

import argparse
import io
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # NumPy knows bfloat16 once this is imported
import numpy as np
import safetensors.numpy

from mimic_jax import files
from mimic_jax.command import InputError

# Where released files keep the state dict; else it is the file's top level.
_STATE_DICTS = ("model", "state_dict")


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a .safetensors or PyTorch file, and what else it says. The content decides which of both it is.

    float16 and bfloat16 become float32, which holds them exactly; other types stay as they are. Of PyTorch's files the
    state dict is read, without DDP's "module." before each name.

    Returns:
      The tensors by name, and the metadata: of safetensors its texts; of PyTorch's files "croco_kwargs" and "mimic_jax"
      where there are such, "args" (a dict, empty where there are none), and "others", the names of all other entries.

    Raises:
      InputError: there is no such file, it is damaged or of another kind, would execute something, or needs PyTorch,
        which is not installed.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a .pth or .safetensors file") from error
    if not size:
        raise InputError(f"{path}: is empty; download it again")
    if head[8:] == b"{":  # first, for the length before it may begin like one of the others
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_pth(path, size, zipped=True)
    if head.startswith(b"\x80"):  # a pickle: what torch.save wrote before 1.6
        return _read_pth(path, size, zipped=False)
    raise InputError(f"{path}: is neither a .safetensors file nor one that torch.save wrote")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes tensors as a .safetensors file, whole or not at all.

    Raises:
      InputError: the file cannot be written.
    """
    whole = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    _write(path, safetensors.numpy.save(whole, dict(metadata)))


def write_pth(path: Path, tensors: Mapping[str, np.ndarray], **others: Any) -> None:
    """Writes tensors as PyTorch's .pth, whole or not at all: a state dict under "model", and the others beside it.

    Raises:
      InputError: PyTorch is not installed, or the file cannot be written.
    """
    torch = _torch(path)
    # NumPy's are copied: they may be read-only, which PyTorch has no notion of.
    state = {name: torch.from_numpy(np.array(tensor, order="C")) for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    torch.save({"model": state, **others}, buffer)
    _write(path, buffer.getvalue())


def _read_safetensors(path: Path):
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys()  # the file itself cannot be gone through
            tensors = {name: _tensor(file, name, path) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: is damaged, or no .safetensors file ({_brief(error)})") from error
    return tensors, metadata


def _tensor(file, name: str, path: Path) -> np.ndarray:
    try:
        return _widened(file.get_tensor(name))
    except (AttributeError, TypeError, KeyError) as error:  # a type that NumPy has no name for
        raise InputError(_of_type(path, name, file.get_slice(name).get_dtype())) from error


def _read_pth(path: Path, size: int, zipped: bool):
    torch = _torch(path)
    if zipped:
        _check_archive(path, size)
    mapped = zipped and path.suffix != ".safetensors"  # PyTorch would believe the ending
    try:
        with (
            path.open("rb") as file,
            torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # what is raised is up to what is in the file
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path}: wants to run {found[1]}, and files of weights are read without running anything;"
                " save it without that entry, or as tensors alone"
            ) from error
        raise InputError(f"{path}: is damaged, or no file of tensors ({_brief(error)})") from error
    state, metadata = _sorted_out(content, torch.Tensor)
    if not state:
        raise InputError(f"{path}: has no tensors under 'model', under 'state_dict' or at its top level")
    claimed = 0
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(f"{path}: tensor {name} is sparse, quantized or without data; save it as a plain one")
        claimed += math.prod(tensor.shape) * tensor.element_size()
    # Tensors may repeat a few numbers on end; a small file would fill the memory.
    if claimed > 4 * size:
        raise InputError(f"{path}: says that its tensors have {claimed:,} bytes, and is itself of {size:,}; not read")
    half = (torch.float16, torch.bfloat16)
    arrays = {}
    for name, tensor in state.items():
        try:
            arrays[name] = (tensor.float() if tensor.dtype in half else tensor).detach().numpy()
        except (TypeError, RuntimeError) as error:  # a type that NumPy has no name for
            raise InputError(_of_type(path, name, tensor.dtype)) from error
    return arrays, metadata


def _numpy_scalars() -> list[Any]:
    """What a number of NumPy's is made of in a pickle: metrics often lie beside released weights."""
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd?"}
    return [np.dtype, np._core.multiarray.scalar, *kinds]


def _check_archive(path: Path, size: int) -> None:
    """Refuses what torch.save never writes: compressed entries, which may be far larger than the file, and damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise InputError(f"{path}: has compressed entries, as torch.save never writes them; not read")
            if sum(entry.file_size for entry in entries) > size:
                raise InputError(f"{path}: its entries overlap; not read")
            damaged = archive.testzip()  # PyTorch itself does not look at the checksums
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: is damaged or cut short ({_brief(error)}); download it again") from error
    if damaged:
        raise InputError(f"{path}: is damaged: the checksum of {damaged} is wrong; download it again")


def _sorted_out(content: Any, tensor_type: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict of what torch.load gave, and the metadata."""
    if not isinstance(content, Mapping):
        return {}, {}
    key = next((key for key in _STATE_DICTS if isinstance(content.get(key), Mapping)), None)
    found = content if key is None else content[key]
    state = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, tensor_type)}
    metadata = {name: content[name] for name in ("croco_kwargs", "mimic_jax") if content.get(name) is not None}
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    read = {key, "args", *metadata, *state}
    others = [str(name)[:80] for name in {**content, **found} if name not in read]
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state, metadata | {"args": dict(args) if isinstance(args, Mapping) else {}, "others": others}


def _widened(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype in (np.float16, ml_dtypes.bfloat16) else tensor


def _of_type(path: Path, name: str, kind: Any) -> str:
    return f"{path}: tensor {name} is of type {kind}; save it as float32, float16 or bfloat16"


def _brief(error: Exception) -> str:
    """What went wrong, on one line, without PyTorch's advice to switch its protection off."""
    text = str(error)
    if text.startswith("Weights only load failed"):
        found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        text = found[1] if found else ""
    text = next(iter(text.strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _write(path: Path, content: bytes) -> None:
    try:
        files.write(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); give another") from error


def _torch(path: Path):
    try:
        import torch
    except ImportError as error:
        broken = "" if getattr(error, "name", None) == "torch" else f" (it is here and broken: {error})"
        raise InputError(
            f"{path}: is PyTorch's format, which needs PyTorch: pip install 'mimic_jax[torch]'{broken}"
        ) from error
    return torch
