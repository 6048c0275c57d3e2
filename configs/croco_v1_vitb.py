"""CroCo v1: ViT-B encoder, Small decoder, cosine positions (arXiv 2210.10716, section 4 and its appendix).

Trained there on 1.8 M pairs rendered in Habitat, 4 GPUs of 64 pairs.
"""

from ml_collections import ConfigDict

from configs import common
from mimic_jax.models.sizes import published


def get_config() -> ConfigDict:
    config = common.experiment("completion", epochs=400.0, batch_size=256)  # of a schedule of 800
    config.compute_dtype = "bfloat16"  # float16 with loss scaling there
    config.model = ConfigDict(
        {"kind": "croco"} | published("vit_b", "small", positions="cosine", mask_ratio=0.9, norm_pix_loss=True)
    )
    config.data = common.pairs(size=256, crop=224, jitter=0.4)
    config.optimizer = common.adamw(base_learning_rate=1.5e-4, warmup_epochs=40.0, total_epochs=800.0)
    config.evals = common.completion_evaluations()
    config.run = common.running()
    return config
