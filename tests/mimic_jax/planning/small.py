"""A config that compiles in seconds."""

from typing import Any

from ml_collections import ConfigDict

from configs.croco_tiny import get_config
from mimic_jax.task import Task
from mimic_jax.tasks import make_task
from mimic_jax.training import config as configs
from mimic_jax.training.config import Settings


def small(kind: str = "croco", **changes: Any) -> ConfigDict:
    """The tiny CroCo made smaller, or an MAE with its augmentation."""
    config = get_config()
    config.batch_size = 16
    config.model.update(encoder_width=32, encoder_depth=3, encoder_heads=2)
    config.model.update(decoder_width=48, decoder_depth=2, decoder_heads=2)
    config.data.update(train="unopened", size=40, crop=32)
    if kind == "mae":
        config.model.update(kind="mae", positions="cosine", mask_ratio=0.75, class_token=True)
        config.data.update(views="both", swap=0.0, flip=0.5)
        config.data.area = (0.2, 1.0)
        config.steps = config.optimizer.total_steps = None
        config.epochs, config.optimizer.total_epochs = 3.0, 5.0
    with config.unlocked():
        for path, value in changes.items():
            *parents, last = path.split("__")
            fields = config
            for parent in parents:
                fields = fields[parent]
            fields[last] = value
    return config


def parts(config: ConfigDict) -> tuple[Task, Settings]:
    """The task and the settings of a config."""
    settings = configs.read(config)
    return make_task(config), settings
