"""A second start reads the programs that the first one has compiled, by JAX's own count of them."""

import os
import re
import subprocess
import sys

from tests import commands
from tests.launch.training import ROOT, command


def counted(dataset, workdir, **changes):
    """Words of a run of one step with its evaluations."""
    short = {"steps": 1, "optimizer.warmup_steps": 0, "optimizer.total_steps": 2}
    return ["tests.launch.counted", *command(dataset, workdir, **short, **changes)[1:]]


def counts(done):
    """Programs that were read and written."""
    assert done.returncode == 0, done.stderr
    return tuple(map(int, re.fullmatch(r"read (\d+) written (\d+)", done.stdout.splitlines()[-1]).groups()))


def test_a_second_start_compiles_nothing(tiny_pairs, tmp_path):
    cache = tmp_path / "share" / "cache"
    files = lambda: {path.name for path in cache.iterdir() if path.name.endswith("-cache")}  # noqa: E731
    # The suite's processes share a folder of their own, by JAX_COMPILATION_CACHE_DIR. The field overrides it: a folder
    # that is new has no program yet. JAX is imported there before the command starts.
    read, written = counts(commands.run(counted(tiny_pairs, tmp_path / "first", run__compile_cache=cache)))
    assert (read, written) == (0, len(files()))
    assert written > 10, "small programs too"
    before = files()
    again = commands.run(counted(tiny_pairs, tmp_path / "second", run__compile_cache=cache))
    assert counts(again) == (written, 0)
    # The variable alone, in a process that imports JAX after the variable is set.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PERSISTENT_CACHE_MIN")}
    by_variable = subprocess.run(
        [sys.executable, "-m", *counted(tiny_pairs, tmp_path / "third")],
        cwd=ROOT,
        env=variables | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert counts(by_variable) == (written, 0)
    assert files() == before


def test_a_cache_that_cannot_be_written_is_named(tiny_pairs, tmp_path):
    (tmp_path / "file").write_text("")
    done = commands.run(counted(tiny_pairs, tmp_path / "run", run__compile_cache=tmp_path / "file" / "cache"))
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: config\.run\.compile_cache='.*cache' cannot be written \(.*\); use another\n", done.stderr
    )
    assert not (tmp_path / "run").exists()
