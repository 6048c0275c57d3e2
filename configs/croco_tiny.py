"""A CroCo v2 small enough to learn something on two CPU cores in minutes: 64×64 views, patches of 8."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.objective = "croco"
    config.seed = 0
    config.init = ""  # weights to begin from: a workdir, an import, a .pth
    config.steps = 400
    config.batch_size = 32
    config.accumulate = 1  # parts that a batch is computed in, for want of memory
    config.log_every = 10
    config.checkpoint_every = 50
    config.keep_checkpoints = 2
    config.keep_every = 0  # steps; checkpoints of multiples of it are kept for good
    config.on_nonfinite = "stop"  # or "skip" updates without a finite loss and gradient, so many at most:
    config.skip_at_most = 10
    config.compute_dtype = "float32"  # parameters and the loss are float32 in any case
    config.remat = "dots"  # or "none", "blocks": what the backward pass finds kept, and what it computes again
    config.scan_layers = True  # compile the layers of a stack as one
    config.attention = "xla"  # or "cudnn", with bfloat16 on NVIDIA's
    config.ema = 0.0  # decay of an average of the parameters, which is then what is evaluated and exported

    config.model = ConfigDict(
        {
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

    config.data = ConfigDict()
    config.data.train = ""  # a dataset folder, or several: --config.data.train=a,b,c
    config.data.size = 68  # views are resized to this many pixels a side …
    config.data.crop = 64  # … and cropped to this many, at random and differently in each view
    config.data.views = "pair"
    config.data.jitter = 0.0  # CroCo has 0.4; so short a training has no use for it
    config.data.swap = 0.5
    config.data.workers = 0  # processes that read; 0: threads of this one
    config.data.threads = 4

    config.eval = ConfigDict()
    config.eval.data = ""  # a dataset; empty: a share of the scenes of data.train is held out
    config.eval.held_out = 0.1
    config.eval.every = 200
    config.eval.pairs = 128
    config.eval.pictures = 6

    config.optimizer = ConfigDict()
    config.optimizer.base_learning_rate = 1.6e-2  # for a batch of 256
    config.optimizer.warmup_steps = 30
    config.optimizer.schedule_steps = config.get_ref("steps")
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.0

    # data: copies of the model; fsdp: parameters and optimizer split, gathered layer by layer; tensor: layers split.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.axis_rules = ConfigDict({"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "mlp": "tensor"})
    return config
