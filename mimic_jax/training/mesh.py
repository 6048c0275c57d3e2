"""Devices in a mesh, and which logical axis of an array lies along which mesh axis."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mimic_jax.command import InputError
from mimic_jax.nn.layers import Axes

Rules = Mapping[str, str | tuple[str, ...] | None]


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """All devices in a mesh of named axes; one size may be −1, which takes what the others leave.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = len(jax.devices())
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        sizes[free[0]] = devices // -int(np.prod(list(sizes.values())))
    if len(free) > 1 or int(np.prod(list(sizes.values()))) != devices:
        raise InputError(f"config.mesh={dict(axes)} does not fit {devices} devices: sizes must multiply to that")
    # Auto: the compiler places what the shardings of inputs and outputs leave open.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))


def sharding(mesh: Mesh, rules: Rules, axes: Axes = ()) -> NamedSharding:
    """How an array with these logical axes lies on the mesh; an axis without a rule is not split."""
    return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in axes)))
