"""The shortest time that published rates allow for what a step does. A bound: nothing runs at all of them at once."""

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from mimic_jax.chips import Chip
from mimic_jax.planning.counts import Counts


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, were it limited by one thing alone (Williams et al. 2009, "Roofline").

    compute: matrix products at peak. memory: bytes at the memory's rate. links: collectives at the links' rate.
    utilisation: model FLOPs of the step as a share of what the chips could do in the longest of the three.
    """

    compute: float
    memory: float
    links: float
    utilisation: float

    @property
    def seconds(self) -> float:
        """The longest: the other two are taken to hide behind it entirely."""
        return max(self.compute, self.memory, self.links)

    @property
    def limit(self) -> str:
        """Which of the three is the longest."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(counts: Counts, chip: Chip, mesh: Mesh, model_flops: int, compute_dtype: str) -> Roofline:
    """The bounds for what each of the mesh's devices does in a step.

    Args:
      model_flops: of one step, of all devices.
      compute_dtype: of the config. Utilisation is of the chip's peak for it.
    """
    compute = math.fsum(flops / chip.flops.get(dtype, chip.flops["f32"]) for dtype, flops in counts.flops.items())
    # Collectives over different axes may use different links at the same time, but no link is used twice.
    over = {key.axes: 0.0 for key in counts.sent}
    for key, sent in counts.sent.items():
        over[key.axes] += sent
    links = math.fsum(counts.sent.values()) / chip.sends
    for axes, sent in over.items():
        links = max(links, sent / (chip.sends * link_share(axes, chip, mesh)))
    bound = Roofline(compute, counts.bytes / chip.bandwidth, links, 0.0)
    possible = chip.peak(compute_dtype) * mesh.size * bound.seconds
    return dataclasses.replace(bound, utilisation=model_flops / possible)


def link_share(axes: tuple[str, ...], chip: Chip, mesh: Mesh) -> float:
    """Which share of a chip's links lies along some axes of the mesh: of a torus, those dimensions that they span."""
    if not chip.torus:
        return 1.0
    inside = [mesh.axis_names.index(name) for name in axes]
    first = np.moveaxis(mesh.devices, inside, range(len(inside))).reshape(
        -1, mesh.size // int(np.prod([mesh.shape[name] for name in axes]))
    )[:, 0]
    coordinates = np.array([device.coords for device in first])
    return int((coordinates != coordinates[0]).any(0).sum()) / chip.torus
