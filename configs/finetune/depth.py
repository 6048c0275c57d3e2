"""Depth of single images: a DPT head on a pre-trained encoder, fine-tuned on a dataset of your own.

    --config.init=WEIGHTS --config.data.train=DATASET

A general recipe, not a published one: learning rate and layer-wise decay are MultiMAE's on NYUv2, the loss is the mean
absolute error of ln metres. The encoder's sizes come from the weights. Without weights
a name gives them: configs/finetune/depth.py:vit_b.
Frozen encoder: --config.optimizer.multipliers="(('encoder/.*', 0.0),)". Few images: --config.data.shots=100.
"""

from ml_collections import ConfigDict

from configs import common
from mimic_jax.models.sizes import published


def get_config(encoder: str = "") -> ConfigDict:
    config = common.experiment("depth", epochs=50.0, batch_size=32)
    config.model = common.encoder(**(published(encoder) if encoder else {}))
    config.depth = common.depth()
    config.data = common.images(holdout_fraction=0.1, size=288, crop=256, flip=0.5, jitter=0.4)
    config.optimizer = common.adamw(
        learning_rate=1e-4, warmup_epochs=2.5, total_epochs=50.0, b2=0.999, weight_decay=1e-4, layer_decay=0.75
    )
    config.evals = common.depth_evaluations()
    config.run = common.running(checkpoint_every=500, keep_best=True)
    return config
