"""The sections of a config that every task has: the experiment itself, its optimizer, and how it is run."""

import dataclasses
from typing import Any

from mimic_jax.sections import setting


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The fields of a config outside its sections."""

    task: str = setting("What is trained: one of the tasks in mimic_jax/tasks.")
    seed: int = setting(
        "Decides initial parameters, the order of examples, and everything random.", low=0, high=2**32 - 1
    )
    init: str = setting("Weights to start from: a workdir, a weights folder, a .pth or .safetensors. Empty: none.")
    steps: int | None = setting("Length of the run. None: `epochs` decides.", low=1)
    epochs: float | None = setting("Length of the run in passes over the training set, where `steps` is None.", above=0)
    batch_size: int = setting("Examples of a step, over all devices.", low=1)
    compute_dtype: str = setting("Type of matrix products and activations.", choices=("float32", "bfloat16"))
    residual_dtype: str = setting("Type of the residual stream between blocks.", choices=("float32", "bfloat16"))
    ema_decay: float = setting(
        "Decay of the exponential moving average of parameters, which is then evaluated and exported. 0: none.",
        low=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class AdamW:
    """The optimizer, and its learning rate: linear warm-up, then half a cosine."""

    learning_rate: float | None = setting("Peak learning rate. None: `base_learning_rate` decides.", low=0)
    base_learning_rate: float | None = setting("Peak learning rate for a batch of 256; it grows with the batch.", low=0)
    end_learning_rate: float = setting("Learning rate at the end of the schedule.", low=0)
    warmup_steps: int | None = setting("Length of the warm-up. None: `warmup_epochs` decides.", low=0)
    warmup_epochs: float | None = setting("Length of the warm-up in epochs.", low=0)
    total_steps: int | None = setting("Length of the schedule, at least that of the run. None: `total_epochs`.", low=1)
    total_epochs: float | None = setting("Length of the schedule in epochs.", above=0)
    b1: float = setting("Decay of the first moment.", low=0, below=1)
    b2: float = setting("Decay of the second moment.", low=0, below=1)
    weight_decay: float = setting("Decoupled decay of parameters of more than one dimension besides layers.", low=0)
    clip_norm: float = setting("Gradients of a larger global norm are scaled down to it. 0: never.", low=0)
    layer_decay: float = setting("Factor of the learning rate from a layer to the one below. 1: none.", above=0, high=1)
    multipliers: tuple[tuple[str, float], ...] = setting(
        "Factors of the learning rate by pattern of a parameter's path, first match wins; 0 freezes.", low=0
    )
    no_decay: tuple[str, ...] = setting("Patterns of parameters that weight decay leaves out besides.")

    def __post_init__(self) -> None:
        if self.learning_rate is None and self.base_learning_rate is None:
            raise ValueError("learning_rate or base_learning_rate must be set")

    def peak(self, batch_size: int) -> float:
        """The highest learning rate, for a global batch."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.base_learning_rate * batch_size / 256


@dataclasses.dataclass(frozen=True)
class Running:
    """How an experiment is run, saved and reported. These fields may change when a run is resumed."""

    log_every: int = setting("Steps between two reports.", low=1)
    checkpoint_every: int = setting("Steps between two checkpoints.", low=1)
    keep_checkpoints: int = setting("Newest checkpoints that are kept.", low=1)
    keep_every: int = setting("Checkpoints of multiples of this many steps are kept for good. 0: none.", low=0)
    keep_best: bool = setting("Whether the checkpoint with the best evaluation is kept.")
    on_nonfinite: str = setting(
        "What a step without a finite loss and gradient does: it ends the run, or is skipped.", choices=("stop", "skip")
    )
    max_skipped: int = setting("Steps that are skipped at most, where on_nonfinite is 'skip'.", low=0)
    accumulation_steps: int = setting("Parts that a batch is computed in, one after the other, to save memory.", low=1)
    remat: str = setting(
        "What the backward pass computes again: nothing, all but matrix products, or all of a block.",
        choices=("none", "dots", "full"),
    )
    scan_layers: bool = setting("Whether the layers of a stack are compiled as one.")
    attention: str = setting("Kernel of attention; 'cudnn' needs bfloat16 and an NVIDIA GPU.", choices=("xla", "cudnn"))
    workers: int = setting("Processes that read data. 0: threads of the training process.", low=0)
    threads: int = setting("Threads that read data, per process.", low=1)
    mesh: dict[str, int] = setting("Devices along each axis of the mesh. -1: those that the other axes leave.", low=-1)
    axis_rules: dict[str, Any] = setting("Axes of the mesh that each logical axis of an array is split over.")
    compile_cache: str = setting("Folder of compiled programs. Empty: JAX_COMPILATION_CACHE_DIR, or none.")

    def __post_init__(self) -> None:
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every={self.keep_every} must be a multiple of checkpoint_every={self.checkpoint_every}: "
                "other steps have no checkpoint"
            )

    @property
    def skips(self) -> int:
        """Steps without a finite loss and gradient that are skipped before the run stops."""
        return self.max_skipped if self.on_nonfinite == "skip" else 0
