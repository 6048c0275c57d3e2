"""CroCo v2: ViT-B encoder, Base decoder, rotary positions (arXiv 2211.10408, section 4).

Trained there on 1.8 M pairs rendered in Habitat and 5.3 M of four real sets (ARKitScenes, MegaDepth, 3DStreetView,
IndoorVL), every pair equally likely: --config.data.train=habitat,arkitscenes,megadepth,streetview,indoorvl.
8 GPUs of 64 pairs.

The recipe is that of the large model, the one whose numbers are known here.
"""

from ml_collections import ConfigDict

from configs import common
from mimic_jax.models.sizes import published


def get_config() -> ConfigDict:
    config = common.experiment("completion", epochs=125.0, batch_size=512)  # of a schedule of 250
    config.compute_dtype = "float32"  # with TF32 products there; bfloat16 is faster
    config.model = ConfigDict(
        {"kind": "croco"} | published("vit_b", "base", positions="rope100", mask_ratio=0.9, norm_pix_loss=True)
    )
    config.data = common.pairs(size=256, crop=224, jitter=0.4)
    config.optimizer = common.adamw(base_learning_rate=1.5e-4, warmup_epochs=12.0, total_epochs=250.0)
    config.evals = common.completion_evaluations()
    config.run = common.running()
    return config
