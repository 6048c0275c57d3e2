"""MIMIC's MAE: ViT-B, each view of each pair as an image of its own (arXiv 2306.15128, section 4).

As mimic_croco_vitb, but for what is learned: images by themselves. A batch is counted in images, two of each pair.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mimic_jax.models.sizes import published


def get_config(dataset: str = "3m") -> ConfigDict:
    if dataset not in ("1m", "3m"):
        raise ValueError(f"mimic_mae_vitb.py:{dataset} must end in :1m or :3m")
    config = ConfigDict()
    config.objective = "mae"
    config.seed = 0
    config.init = ""  # weights to begin from: a workdir, an import, a .pth
    config.epochs = 200.0
    config.steps = placeholder(int)  # set: stop there, whatever the epochs
    config.batch_size = 4096
    config.log_every = 100
    config.checkpoint_every = 2000
    config.keep_checkpoints = 3
    config.compute_dtype = "bfloat16"  # parameters and the loss are float32

    config.model = ConfigDict(
        published("vit_b", "small", positions="cosine", class_token=True, mask_ratio=0.75, norm_pix_loss=True)
    )

    config.data = ConfigDict()
    config.data.train = f"mimic_{dataset}"  # a dataset folder: --config.data.train=DATASET
    config.data.size = 224  # as stored
    config.data.crop = 224
    config.data.views = "both"
    config.data.jitter = 0.0
    config.data.area = (0.2, 1.0)  # random resized crops
    config.data.flip = 0.5
    config.data.threads = 16

    config.eval = ConfigDict()
    config.eval.data = ""  # a dataset; empty: a share of the scenes of data.train is held out
    config.eval.held_out = 0.01
    config.eval.every = 10_000
    config.eval.pairs = 512
    config.eval.pictures = 8

    config.optimizer = ConfigDict()
    config.optimizer.base_learning_rate = 1.5e-4  # for a batch of 256: 2.4e-3 at 4096
    config.optimizer.warmup_epochs = 20.0
    config.optimizer.schedule_epochs = 200.0
    config.optimizer.warmup_steps = placeholder(int)  # these two set: instead of the epochs
    config.optimizer.schedule_steps = placeholder(int)
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05

    config.mesh = ConfigDict({"data": -1})
    config.axis_rules = ConfigDict({"batch": "data"})
    return config
