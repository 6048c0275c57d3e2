"""docs/config.md lists the fields that configs have, and is what the command writes now."""

import importlib.util
from pathlib import Path

import pytest

from launch.config_reference import reference, sections_of_configs
from mimic_jax.renamed import flatten
from mimic_jax.sections import describe
from mimic_jax.tasks import TASKS
from tests import commands

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if path.name != "common.py")
SECTIONS = list(sections_of_configs())


def documented(section: type) -> set[str]:
    return {name for name, *_ in describe(section)}


def fields(values: dict, section: type) -> set[str]:
    """The names in a section; a field that is itself a table of names (mesh, axis_rules) is one field."""
    tables = tuple(name for name in documented(section) if isinstance(values.get(name), dict))
    return {next((table for table in tables if name.startswith(f"{table}.")), name) for name in flatten(values)}


def test_the_page_is_what_is_generated_now(tmp_path):
    done = commands.run(["launch.config_reference", f"--output={tmp_path / 'config.md'}"])
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "config.md").read_text()
    assert written == (ROOT / "docs" / "config.md").read_text(), "run python -m launch.config_reference"
    assert written == reference()
    for _, _, section, _ in SECTIONS:
        assert all(f"| `{name}` | {meaning} |" in written for name, *_, meaning in describe(section))


@pytest.mark.parametrize(("name", "tasks", "section", "values"), [pytest.param(*each, id=each[0]) for each in SECTIONS])
def test_common_has_exactly_the_fields_that_are_read(name, tasks, section, values):
    if name == "config":
        values = values | {"task": ""}
    if (name, tasks) != ("config.model", "completion"):  # each experiment has its own
        assert fields(values, section) == documented(section)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_the_sections_and_fields_of_the_page(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().to_dict()
    of_task = {name: section for name, tasks, section, _ in SECTIONS if config["task"] in tasks or not tasks}
    inner = {name.removeprefix("config."): section for name, section in of_task.items() if name != "config"}
    assert set(config) == documented(of_task["config"]) | set(inner)
    for name, section in inner.items():
        if name == "model":  # what is left out comes from the weights, or is the default of mimic_jax.models.sizes
            assert fields(config[name], section) <= documented(section)
        else:
            assert fields(config[name], section) == documented(section), name


def test_every_task_is_on_the_page():
    assert set(TASKS) == {task for _, tasks, _, _ in SECTIONS for task in tasks.split(", ") if task}
