"""Writes docs/config.md, the reference page of all config fields.

    python -m launch.config_reference --output=docs/config.md

Meanings, types and ranges come from the dataclasses that read a config; defaults come from configs/common.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from mimic_jax import command, files

HEADER = """\
# Every field of a config

This page is generated: `python -m launch.config_reference`. Meanings and ranges come from the dataclasses that read a
config, defaults from `configs/common.py`. An experiment in `configs/` may set other values.

A field changes on the command line: `--config.optimizer.b2=0.999`, `--config.run.mesh.fsdp=8`. A field whose default
is "required" has none in `configs/common.py`: the experiment or the command line sets it.

When a run resumes, every field of `config.run` and `config.evals` may differ, and `config.data.train` and
`config.data.validation` may name other folders of the same data. All other fields must be the same.
"""


def main() -> None:
    path = Path(flags.FLAGS.output)
    try:
        files.write(path, reference().encode())
    except OSError as error:
        raise command.InputError(f"--output={path} cannot be written ({error.strerror})") from error
    print(path)


def reference() -> str:
    """The page."""
    parts = [HEADER]
    for name, use, section, values in sections_of_configs():
        parts.append(
            f"## `{name}`{f': {use}' if use else ''}\n\n{section.__doc__.splitlines()[0]}\n\n{_table(section, values)}"
        )
    return "\n".join(parts)


def sections_of_configs() -> Iterator[tuple[str, str, type, dict[str, Any]]]:
    """Every section of a config: name, the tasks that use it (empty: all), dataclass and defaults."""
    # Imported here, so that --help answers at once.
    from configs import common
    from mimic_jax.data.sections import Images, Pairs
    from mimic_jax.tasks import backbones, completion, depth, normals
    from mimic_jax.training.sections import AdamW, Experiment, Running

    experiment = common.experiment("").to_dict()
    del experiment["task"]
    yield "config", "", Experiment, experiment
    yield "config.optimizer", "", AdamW, common.adamw().to_dict()
    yield "config.run", "", Running, common.running().to_dict()
    yield "config.model", "completion", backbones.Completer, {}
    yield "config.data", "completion", Pairs, common.pairs().to_dict()
    evaluations = common.completion_evaluations().to_dict()
    yield "config.evals", "completion", completion.CompletionEvaluations, evaluations
    yield "config.model", "depth, normals", backbones.Encoder, common.encoder().to_dict()
    yield "config.data", "depth, normals", Images, common.images().to_dict()
    yield "config.depth", "depth", depth.DepthHead, common.depth().to_dict()
    yield "config.evals", "depth", depth.DepthEvaluations, common.depth_evaluations().to_dict()
    yield "config.normals", "normals", normals.NormalsHead, common.normals().to_dict()
    yield "config.evals", "normals", normals.NormalsEvaluations, common.normals_evaluations().to_dict()


def _table(section: type, values: dict[str, Any]) -> str:
    from mimic_jax import sections

    rows = ["| field | meaning | type | range | default |", "| --- | --- | --- | --- | --- |"]
    for name, kind, range_, meaning in sections.describe(section):
        value = values
        for key in name.split("."):
            value = value.get(key)
        default = "required" if value is None and "None" not in kind else f"`{value!r}`"
        rows.append(f"| `{name}` | {meaning} | {kind} | {range_} | {default} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    # Not defined on import, so that other commands can use this module.
    flags.DEFINE_string("output", "docs/config.md", "The page.")
    command.run(main)
