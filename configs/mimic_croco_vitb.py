"""MIMIC: CroCo with a class token, ViT-B encoder, Small decoder (arXiv 2306.15128, section 4).

--config=configs/mimic_croco_vitb.py:1m is for MIMIC-1M (1.3 M pairs), :3m for MIMIC-3M (3.1 M); the recipe is one.
8 GPUs of 128 pairs, gradients of 4 batches added up.
"""

from ml_collections import ConfigDict

from configs import common
from mimic_jax.models.sizes import published


def get_config(dataset: str = "3m") -> ConfigDict:
    if dataset not in ("1m", "3m"):
        raise ValueError(f"mimic_croco_vitb.py:{dataset} must end in :1m or :3m")
    config = common.experiment("completion", epochs=200.0, batch_size=4096)
    config.compute_dtype = "bfloat16"
    config.model = ConfigDict(
        {"kind": "croco"}
        | published("vit_b", "small", positions="cosine", class_token=True, mask_ratio=0.9, norm_pix_loss=True)
    )
    config.data = common.pairs(train=f"mimic_{dataset}", size=224, crop=224, swap=0.5)
    config.optimizer = common.adamw(base_learning_rate=1.5e-4, warmup_epochs=20.0, total_epochs=200.0)
    config.evals = common.completion_evaluations()
    config.run = common.running()
    return config
