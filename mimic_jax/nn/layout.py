"""Which logical axis of an array lies along which axis of a mesh of devices."""

import dataclasses
import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

Axes = tuple[str | None, ...]
Rules = Mapping[str, str | tuple[str, ...] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A mesh, and for each logical axis the axis or axes of the mesh that it is split over; none where it has no rule.

    Parameters have the axes `embed`, `heads`, `mlp`, `layers`, …; `batch` is that of everything computed from a batch.
    """

    mesh: Mesh
    rules: Rules

    def sharding(self, axes: Axes = ()) -> NamedSharding:
        """How an array with these logical axes lies; without any, every device has all of it."""
        return NamedSharding(self.mesh, PartitionSpec(*(self.split(axis) or None for axis in axes)))

    def place(self, array: Shaped[Array, "..."], axes: Axes) -> Shaped[Array, "..."]:
        """The same array, which the compiler must lay out so, and its gradient too."""
        return jax.lax.with_sharding_constraint(array, self.sharding(axes))

    def split(self, axis: str | None) -> tuple[str, ...]:
        """The axes of the mesh that a logical axis is split over."""
        target = self.rules.get(axis) if axis else None
        return () if target is None else (target,) if isinstance(target, str) else tuple(target)

    def parts(self, axis: str | None) -> int:
        """How many devices a logical axis is split over."""
        return math.prod(self.mesh.shape[target] for target in self.split(axis))
