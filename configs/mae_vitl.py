"""MAE: ViT-L (arXiv 2111.06377, appendix A.1).

Trained there on ImageNet-1K. Here an image is view 1 of a pair; `views = "both"` takes both.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mimic_jax.models.sizes import published


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.objective = "mae"
    config.seed = 0
    config.init = ""  # weights to begin from: a workdir, an import, a .pth
    config.epochs = 800.0
    config.steps = placeholder(int)  # set: stop there, whatever the epochs
    config.batch_size = 4096
    config.accumulate = 1  # parts that a batch is computed in, for want of memory
    config.log_every = 100
    config.checkpoint_every = 2000
    config.keep_checkpoints = 3
    config.keep_every = 0  # steps; checkpoints of multiples of it are kept for good
    config.on_nonfinite = "stop"  # or "skip" updates without a finite loss and gradient, so many at most:
    config.skip_at_most = 10
    config.compute_dtype = "bfloat16"  # parameters and the loss are float32
    config.remat = "dots"  # or "none", "blocks": what the backward pass finds kept, and what it computes again
    config.scan_layers = True  # compile the layers of a stack as one
    config.attention = "xla"  # or "cudnn", with bfloat16 on NVIDIA's
    config.ema = 0.0  # decay of an average of the parameters, which is then what is evaluated and exported

    config.model = ConfigDict(
        published("vit_l", "small", positions="cosine", class_token=True, mask_ratio=0.75, norm_pix_loss=True)
    )

    config.data = ConfigDict()
    config.data.train = ""  # a dataset folder, or several: --config.data.train=a,b,c
    config.data.size = 256
    config.data.crop = 224
    config.data.views = "first"
    config.data.jitter = 0.0
    config.data.area = (0.2, 1.0)  # random resized crops
    config.data.flip = 0.5
    config.data.workers = 0  # processes that read; 0: threads of this one
    config.data.threads = 16

    config.eval = ConfigDict()
    config.eval.data = ""  # a dataset; empty: a share of the scenes of data.train is held out
    config.eval.held_out = 0.01
    config.eval.every = 10_000
    config.eval.pairs = 512
    config.eval.pictures = 8

    config.optimizer = ConfigDict()
    config.optimizer.base_learning_rate = 1.5e-4  # for a batch of 256: 2.4e-3 at 4096
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.schedule_epochs = 800.0
    config.optimizer.warmup_steps = placeholder(int)  # these two set: instead of the epochs
    config.optimizer.schedule_steps = placeholder(int)
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.0

    # data: copies of the model; fsdp: parameters and optimizer split, gathered layer by layer; tensor: layers split.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.axis_rules = ConfigDict({"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "mlp": "tensor"})
    return config
