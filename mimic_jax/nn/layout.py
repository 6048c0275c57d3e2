"""How the logical axes of arrays are sharded over the axes of a mesh of devices."""

import dataclasses
import math
from collections.abc import Mapping

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

Axes = tuple[str | None, ...]
Rules = Mapping[str, str | tuple[str, ...] | None]


def axes_of(variable: nnx.Variable) -> Axes:
    """The logical axes of a parameter by its metadata; a parameter of a stock layer names none and is replicated."""
    return variable.get_metadata().get("axes") or (None,) * len(variable.get_value().shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A mesh, and rules that map each logical axis to the mesh axes it is sharded over.

    An axis without a rule is replicated. Parameters have the logical axes `embed`, `heads`, `mlp`, `layers` and so on;
    `batch` is the first axis of everything that is computed from a batch.
    """

    mesh: Mesh
    rules: Rules

    def sharding(self, axes: Axes = ()) -> NamedSharding:
        """The sharding of an array with these logical axes; replicated if there are none."""
        return NamedSharding(self.mesh, PartitionSpec(*(self.mesh_axes(axis) or None for axis in axes)))

    def constrain(self, array: Shaped[Array, "..."], axes: Axes) -> Shaped[Array, "..."]:
        """The same array; the compiler must shard it, and its gradient, by these logical axes."""
        return jax.lax.with_sharding_constraint(array, self.sharding(axes))

    def mesh_axes(self, axis: str | None) -> tuple[str, ...]:
        """The mesh axes that a logical axis is sharded over."""
        target = self.rules.get(axis) if axis else None
        return () if target is None else (target,) if isinstance(target, str) else tuple(target)

    def shards(self, axis: str | None) -> int:
        """The number of shards of a logical axis."""
        return math.prod(self.mesh.shape[name] for name in self.mesh_axes(axis))

    def axes_in_use(self, axes: Axes) -> Axes:
        """The logical axes that stay sharded where an array is used; None for each axis that is gathered for use.

        The rules decide. Mesh axes of the batch hold different examples, and each example needs the whole parameter:
        a logical axis that shares a mesh axis with `batch` is gathered for use (FSDP). A logical axis on other mesh
        axes stays sharded, and so do the activations computed with it (tensor parallelism).

        Args:
          axes: logical axes of a parameter or of an activation, without `batch`.
        """
        of_batch = set(self.mesh_axes("batch"))
        return tuple(axis if of_batch.isdisjoint(self.mesh_axes(axis)) else None for axis in axes)
