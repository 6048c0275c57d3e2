"""JAX's persistent compilation cache: compiled programs that a later start of a run reads instead of compiling."""

import os
import uuid

import jax
from jax.experimental.compilation_cache import compilation_cache

from mimic_jax import files
from mimic_jax.command import InputError, one_line

# JAX leaves out programs that compile faster than this, by default 1 s; a start of a run has hundreds of these.
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def use_compile_cache(folder: str) -> None:
    """Has JAX read and write compiled programs in a folder from now on.

    Args:
      folder: of this machine, or gs://…; made where it is missing. Empty: the folder that JAX already has, from
        JAX_COMPILATION_CACHE_DIR for example, or none. Programs of any compile time are stored, unless
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS sets another limit.

    Raises:
      InputError: the folder cannot be written.
    """
    if folder:
        path = files.as_path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".probe_{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InputError(
                f"config.run.compile_cache={folder!r} cannot be written ({reason}); use another"
            ) from error
        if jax.config.jax_compilation_cache_dir != str(path):
            compilation_cache.reset_cache()  # of another folder, where this process has compiled something before
            jax.config.update("jax_compilation_cache_dir", str(path))
    if jax.config.jax_compilation_cache_dir and _MIN_SECONDS not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
