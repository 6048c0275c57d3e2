"""What may import what: the tables of CONTRIBUTING.md, read from the source with `ast`."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mimic_jax", "configs", "launch", "data_prep", "benchmarks", "studies")

# For each part of mimic_jax, the parts that it may import besides itself. A part is a folder or a file; of a folder
# whose modules are listed, only those.
TABLE = {
    "command": set(),
    "chips": set(),
    "files": set(),
    "metrics_file": {"command"},
    "sections": {"command"},
    "renamed": set(),
    "hosts": {"command"},
    "records": {"command", "files"},
    "checkpoints": {"command"},
    "workdir": {"command", "files", "renamed", "models.description"},
    "backbone": {"command", "interop", "models", "nn", "data.augment"},
    "nn": set(),
    "models": {"nn"},
    "data": {"records", "files", "hosts", "command", "sections"},
    "task": {"data.source", "models.description", "nn"},
    "evaluation": {"models", "data", "nn", "hosts", "records", "command"},
    "viz": {"models", "data", "evaluation", "nn", "records", "command", "files", "hosts"},
    "interop": {"models", "checkpoints", "nn", "command", "files", "workdir", "metrics_file", "data.augment"},
    "tasks": {
        *("task", "sections", "models", "data", "evaluation", "viz", "interop.weights", "nn"),
        *("hosts", "records", "command"),
    },
    "training": {
        *("task", "nn", "data.source", "data.order", "data.prefetch", "data.placement", "interop.load"),
        *("interop.weights", "checkpoints", "workdir", "metrics_file", "renamed", "sections", "models.sizes"),
        *("files", "hosts", "chips", "command"),
    },
    "planning": {"training", "task", "nn", "chips", "files", "command"},
}
# Parts that import jax neither themselves nor by what they import.
WITHOUT_JAX = ("command", "chips", "files", "records", "sections", "renamed", "metrics_file", "workdir")
OTHERS = {
    "configs": {"configs.common", "mimic_jax.models.sizes"},
    "data_prep": {
        *("mimic_jax.records", "mimic_jax.files", "mimic_jax.command", "mimic_jax.viz.pictures", "mimic_jax.viz.dense")
    },
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            inside = {f"{node.module}.{each.name}" for each in node.names}
            ours = node.module.split(".")[0] in FOLDERS
            found |= {name if ours and is_module(name) else node.module for name in inside}
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] in FOLDERS}


def allowed(name: str, table: set[str]) -> bool:
    return any(name == each or name.startswith(each + ".") for each in table)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "mimic_jax").with_suffix("").parts[0]


def test_every_part_is_in_the_table():
    assert {part_of(path) for path in modules("mimic_jax")} == {*TABLE, "__init__"}


@pytest.mark.parametrize("part", TABLE)
def test_parts_import_what_the_table_says(part):
    wrong = []
    for path in modules("mimic_jax"):
        if part_of(path) == part:
            for name in sorted(ours(path)):
                inner = name.removeprefix("mimic_jax.")
                if not (name.startswith("mimic_jax.") and allowed(inner, TABLE[part] | {part})):
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", OTHERS)
def test_configs_and_curation_import_little_of_the_library(folder):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(folder)
        for name in sorted(ours(path))
        if not allowed(name, OTHERS[folder] | ({folder} if folder != "configs" else set()))
    ]
    assert not wrong


def test_nothing_but_commands_imports_commands():
    for folder in ("mimic_jax", "configs", "data_prep"):
        for path in modules(folder):
            assert not allowed_any(ours(path), ("launch", "benchmarks", "studies")), path


def allowed_any(names: set[str], folders: tuple[str, ...]) -> bool:
    return any(allowed(name, set(folders)) for name in names)


def reached(start: set[str]) -> set[str]:
    """All modules that are imported with these, packages included."""
    found, todo = set(), list(start)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        if "." in name:
            todo.append(name.rpartition(".")[0])
        path = ROOT.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name.split(".")[0] in FOLDERS and file.is_file():
            todo += top_level_imports(file)
    return found


def top_level_imports(path: Path) -> set[str]:
    """The modules that are imported when a file is."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    top = ast.Module([node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)], [])
    found = set()
    for node in top.body:
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        else:
            names = {f"{node.module}.{each.name}" for each in node.names}
            found |= {node.module} | {name for name in names if name.split(".")[0] in FOLDERS and is_module(name)}
    return found


JAX = {"jax", "flax", "optax", "orbax", "jaxlib"}


@pytest.mark.parametrize("part", WITHOUT_JAX)
def test_parts_without_jax(part):
    names = {name_of(path) for path in modules("mimic_jax") if part_of(path) == part}
    assert not {name for name in reached(names) if name.split(".")[0] in JAX}


def test_curation_never_imports_jax():
    for path in modules("data_prep"):
        assert not {name for name in imports_of(path) if name.split(".")[0] in JAX}, path
    names = {name_of(path) for path in modules("data_prep")}
    assert not {name for name in reached(names) if name.split(".")[0] in JAX}


def test_importing_the_library_does_not_import_jax():
    code = "import sys, mimic_jax, mimic_jax.records, data_prep.mine; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
