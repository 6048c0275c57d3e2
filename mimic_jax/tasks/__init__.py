"""The tasks, by the names that configs have for them."""

from ml_collections import ConfigDict

from mimic_jax.command import InputError
from mimic_jax.models.sizes import Sizes
from mimic_jax.task import Task
from mimic_jax.tasks import completion, depth, normals

TASKS = {"completion": completion.make, "depth": depth.make, "normals": normals.make}


def make_task(config: ConfigDict, known: Sizes | None = None) -> Task:
    """The task that a config names.

    Args:
      known: sizes of the weights that the run starts from, or of the run that it resumes.

    Raises:
      InputError: there is no such task, or a field of the config cannot be used.
    """
    if config.get("task") not in TASKS:
        raise InputError(f"config.task={config.get('task')!r} must be {' or '.join(map(repr, TASKS))}")
    return TASKS[config.task](config, known)
