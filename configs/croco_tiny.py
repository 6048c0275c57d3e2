"""A CroCo v2 small enough to learn something on two CPU cores in minutes: 64×64 views, patches of 8."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.experiment("completion", steps=400, batch_size=32, compute_dtype="float32")
    config.model = ConfigDict(
        {
            "kind": "croco",
            "encoder_width": 128,
            "encoder_depth": 2,
            "encoder_heads": 2,
            "decoder_width": 128,
            "decoder_depth": 4,
            "decoder_heads": 2,
            "patch_size": 8,
            "positions": "rope100",
            "class_token": False,
            "mask_ratio": 0.9,
            "norm_pix_loss": True,
        }
    )
    # So short a training has no use for CroCo's jitter of 0.4.
    config.data = common.pairs(holdout_fraction=0.1, size=68, crop=64, swap=0.5)
    config.optimizer = common.adamw(base_learning_rate=1.6e-2, warmup_steps=30, total_steps=config.get_ref("steps"))
    config.evals = common.completion_evaluations(every=200, examples=128, pictures=6)
    config.run = common.running(log_every=10, checkpoint_every=50, keep_checkpoints=2, threads=4)
    return config
