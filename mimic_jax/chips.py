"""Published rates of accelerators. Never imports jax.

Sources: Cloud TPU's pages docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, "key specifications"; NVIDIA's data sheets of
the A100 (nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf: 312 TFLOPS, 156 of TF32), the H100 and the H200 (SXM: 1979
and 989 TFLOPS with sparsity, which is twice as many as without). Both publish the bandwidth of all of a chip's links in
both directions together; half of it is what a chip can send.
"""

import dataclasses

GIB, GB = 2**30, 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of one chip; none has been measured here.

    name: as people say it. kind: what its devices' `device_kind` begins with.
    flops: of matrix products a second, by the operands' element type as HLO names it. float32 means jax's default
      precision: one pass of bfloat16 on a TPU, TF32 on a GPU.
    memory: bytes. bandwidth: bytes a second between memory and chip. sends: bytes a second over all links together.
    torus: along how many dimensions of a torus the links go, each with the same share; 0 where a switch joins all.
    """

    name: str
    kind: str
    flops: dict[str, float]
    memory: int
    bandwidth: float
    sends: float
    torus: int

    def peak(self, compute_dtype: str) -> float:
        """FLOPs of matrix products a second for a config's compute_dtype, which utilisation is a share of."""
        return self.flops["bf16" if compute_dtype == "bfloat16" else "f32"]


def _tpu(name: str, kind: str, peak: float, memory: int, bandwidth: float, links: float, torus: int) -> Chip:
    return Chip(name, kind, {"bf16": peak, "f32": peak}, memory, bandwidth, links / 2, torus)


def _gpu(name: str, kind: str, peak: float, memory: int, bandwidth: float, links: float) -> Chip:
    return Chip(name, kind, {"bf16": peak, "f16": peak, "f32": peak / 2}, memory, bandwidth, links / 2, 0)


CHIPS = (
    _tpu("TPU v5e", "TPU v5 lite", 197e12, 16 * GIB, 819e9, 400e9, torus=2),
    _tpu("TPU v5p", "TPU v5", 459e12, 95 * GIB, 2765e9, 1200e9, torus=3),
    _tpu("TPU v6e", "TPU v6 lite", 918e12, 32 * GIB, 1638e9, 800e9, torus=2),
    _gpu("A100 40GB", "NVIDIA A100-SXM4-40GB", 312e12, 40 * GB, 1555e9, 600e9),
    _gpu("A100 80GB", "NVIDIA A100-SXM4-80GB", 312e12, 80 * GB, 2039e9, 600e9),
    _gpu("H100", "NVIDIA H100 80GB HBM3", 989e12, 80 * GB, 3350e9, 900e9),
    _gpu("H200", "NVIDIA H200", 989e12, 141 * GB, 4800e9, 900e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose devices are of this kind; None where its rates are not in the table."""
    matching = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(matching, key=lambda chip: len(chip.kind), default=None)  # "TPU v5 lite" begins with "TPU v5"
