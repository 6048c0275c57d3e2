"""Shapes in signatures are checked while testing; tests that need files from outside the project skip loudly."""

import os
from pathlib import Path

# Must precede the first import of jax: the suite runs on the CPU whatever backends are installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Many tests, and the processes they start, compile the same small programs: what one has compiled all others read.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Most of a test's time would be the making of machine code that runs once. XLA's own passes are all run; its older and
# plainer emitter is five times as fast. `XLA_FLAGS= make test` tests the code that users get.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import hypothesis
import pytest
from jaxtyping import install_import_hook

# Compilation makes a first example slow; a time limit an example would measure that.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")

install_import_hook(["mimic_jax", "data_prep"], "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MIMIC_SHARED", ROOT.parent / "shared"))


def _needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is absent: set MIMIC_SHARED to the folder that holds parity/ and real/")
    return path


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real images and videos; skips where it is absent."""
    return _needed(SHARED / "real")


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of the published models' numbers; skips where it is absent."""
    return _needed(SHARED / "parity")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one of them at the end."""
    longest = ("test_readme.py", "test_demo.py", "test_pretrain.py", "test_mine.py")
    items.sort(key=lambda item: item.path.name not in longest)
