"""MAE: ViT-L (arXiv 2111.06377, appendix A.1).

Trained there on ImageNet-1K. Here an image is view 1 of a pair; `views = "both"` takes both.
"""

from ml_collections import ConfigDict

from configs import common
from mimic_jax.models.sizes import published


def get_config() -> ConfigDict:
    config = common.experiment("completion", epochs=800.0, batch_size=4096)
    config.compute_dtype = "bfloat16"
    config.model = ConfigDict(
        {"kind": "mae"}
        | published("vit_l", "small", positions="cosine", class_token=True, mask_ratio=0.75, norm_pix_loss=True)
    )
    config.data = common.pairs(size=256, crop=224, views="first", area=(0.2, 1.0), flip=0.5)
    config.optimizer = common.adamw(base_learning_rate=1.5e-4, warmup_epochs=40.0, total_epochs=800.0)
    config.evals = common.completion_evaluations()
    config.run = common.running()
    return config
