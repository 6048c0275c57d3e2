"""MIMIC's MAE: ViT-B, each view of each pair as an image of its own (arXiv 2306.15128, section 4).

As mimic_croco_vitb, but for what is learned: images by themselves. A batch is counted in images, two of each pair.
"""

from ml_collections import ConfigDict

from configs import common
from mimic_jax.models.sizes import published


def get_config(dataset: str = "3m") -> ConfigDict:
    if dataset not in ("1m", "3m"):
        raise ValueError(f"mimic_mae_vitb.py:{dataset} must end in :1m or :3m")
    config = common.experiment("completion", epochs=200.0, batch_size=4096)
    config.compute_dtype = "bfloat16"
    config.model = ConfigDict(
        {"kind": "mae"}
        | published("vit_b", "small", positions="cosine", class_token=True, mask_ratio=0.75, norm_pix_loss=True)
    )
    config.data = common.pairs(train=f"mimic_{dataset}", size=224, crop=224, views="both", area=(0.2, 1.0), flip=0.5)
    config.optimizer = common.adamw(base_learning_rate=1.5e-4, warmup_epochs=20.0, total_epochs=200.0)
    config.evals = common.completion_evaluations()
    config.run = common.running()
    return config
