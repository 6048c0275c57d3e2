"""A config that compiles in seconds."""

from ml_collections import ConfigDict

from configs.croco_tiny import get_config


def small(objective: str = "croco", **changes) -> ConfigDict:
    """The tiny CroCo made smaller, or an MAE with its augmentation."""
    config = get_config()
    config.batch_size = 16
    config.model.update(encoder_width=32, encoder_depth=3, encoder_heads=2)
    config.model.update(decoder_width=48, decoder_depth=2, decoder_heads=2)
    config.data.update(size=40, crop=32)
    if objective == "mae":
        config.objective = "mae"
        config.data.update(views="both", swap=0.0, flip=0.5)
        config.data.area = (0.2, 1.0)
        config.steps = None
        config.epochs, config.optimizer.schedule_epochs = 3.0, 5.0
        config.model.update(positions="cosine", mask_ratio=0.75)
        config.model.class_token = True
    with config.unlocked():
        for path, value in changes.items():
            *parents, last = path.split("__")
            fields = config
            for parent in parents:
                fields = fields[parent]
            fields[last] = value
    return config
