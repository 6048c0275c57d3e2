"""Weights from wherever they are: a workdir, a folder of weights, or a file of another system's."""

from pathlib import Path

from mimic_jax.command import InputError
from mimic_jax.interop import weights
from mimic_jax.interop.weights import Weights


def load(path: str | Path, step: int | None = None) -> Weights:
    """The weights at a path.

    Args:
      path: a workdir of `launch.pretrain`, a folder that `launch.import_weights` or `launch.export` made, or a .pth or
        .safetensors file that `launch.import_weights` can read without being told more.
      step: which checkpoint of a workdir; the newest by default.

    Raises:
      InputError: there is nothing at the path that can be read, or there is no such checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a workdir, a weights folder, or a .pth or .safetensors")
    if path.is_file():
        from mimic_jax.interop.importing import import_file

        found, _ = import_file(path)
    elif (path / weights.DESCRIPTION).is_file():
        found = weights.load_folder(path)
    elif not (path / "config.json").is_file():
        raise InputError(
            f"{path}: is neither a workdir (it has no config.json) nor a weights folder (no {weights.DESCRIPTION})"
        )
    else:
        from mimic_jax.training.checkpoint import load_weights

        return load_weights(path, step)
    if step is not None:
        raise InputError(f"--step={step}: {path} is no workdir and has one set of weights only; leave the flag out")
    return found
