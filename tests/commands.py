"""Commands in processes of their own that need not import the libraries again: each is forked off one that has."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What takes long to import and none of this project, so that a command's own modules and flags are new to its process.
LIBRARIES = ("absl.app", "cv2", "flax.nnx", "grain", "jax", "matplotlib.figure", "ml_collections.config_flags", "optax")
LIBRARIES += ("orbax.checkpoint", "rich.table", "scipy.spatial", "tensorflow_datasets", "trimesh")

# Forks when asked to; the copy leaves the loop and ends as a process does that was started for this command alone.
_SERVER = """
import gc, importlib, json, os, runpy, signal, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()  # pages stay shared, and a process that ends does not take all of that apart
for line in sys.stdin:
    words, folder, environment, seconds, outputs = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate([os.devnull, *outputs]):
    os.dup2(os.open(path, os.O_RDWR), number)
os.chdir(folder)
os.environ.update(environment)
signal.alarm(seconds)
sys.argv = words
runpy._run_module_as_main(words[0])  # what -m is
"""


@functools.cache
def _server() -> subprocess.Popen:
    """One for each process of pytest; it ends with its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER, *LIBRARIES],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def run(
    words: Sequence[object], folder: Path = ROOT, environment: Mapping[str, str] | None = None, seconds: int = 300
) -> subprocess.CompletedProcess:
    """`python -m WORDS` in a folder, to its end; past so many seconds it is killed.

    Args:
      environment: what is other than here. What a library reads when it is imported has been read: JAX_…, PYTHON….
    """
    words = [str(word) for word in words]
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        request = words, str(folder), dict(environment or {}), seconds, [out.name, err.name]
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read(), err.read())
