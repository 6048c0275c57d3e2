"""Devices in a mesh, and which logical axis of an array lies along which mesh axis."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mimic_jax.command import InputError
from mimic_jax.nn.layers import Axes

Rules = Mapping[str, str | tuple[str, ...] | None]


def make_mesh(axes: Mapping[str, int], rules: Rules, batch_size: int) -> Mesh:
    """All devices in a mesh of named axes; one size may be −1, which takes what the others leave.

    Raises:
      InputError: the sizes do not multiply to the number of devices, a rule names no axis of the mesh, or the batch
        does not divide over the devices that it is split over.
    """
    devices = len(jax.devices())
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        sizes[free[0]] = devices // -math.prod(sizes.values())
    if len(free) > 1 or math.prod(sizes.values()) != devices:
        raise InputError(f"config.mesh={dict(axes)} does not fit {devices} devices: sizes must multiply to that")
    for axis, target in rules.items():
        targets = _mesh_axes(target)
        if not set(targets) <= sizes.keys():
            raise InputError(f"config.axis_rules.{axis}={target!r} is no axis of config.mesh, which has {list(sizes)}")
    parts = math.prod(sizes[target] for target in _mesh_axes(rules.get("batch")))
    if batch_size % parts:
        raise InputError(f"config.batch_size={batch_size} does not divide over {parts} devices")
    # Auto: the compiler places what the shardings of inputs and outputs leave open.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))


def sharding(mesh: Mesh, rules: Rules, axes: Axes = ()) -> NamedSharding:
    """How an array with these logical axes lies on the mesh; an axis without a rule is not split."""
    return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in axes)))


def check_placement(mesh: Mesh, rules: Rules, name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Checks that an array can lie on the mesh as the rules say.

    Raises:
      InputError: names the array, the rule, and what does not go together.
    """
    used: list[str] = []
    for length, axis in zip(shape, axes, strict=True):
        targets = _mesh_axes(rules.get(axis) if axis else None)
        parts = math.prod(mesh.shape[target] for target in targets)
        if length % parts:
            raise InputError(
                f"config.axis_rules.{axis}={rules[axis]!r}: {name} has {length} along {axis}, which does not divide "
                f"over {parts} devices; change config.mesh, or the rule"
            )
        if set(targets) & set(used):
            raise InputError(
                f"config.axis_rules.{axis}={rules[axis]!r}: another axis of {name} lies along it already; change one"
            )
        used += targets


def _mesh_axes(target: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if target is None:
        return ()
    return (target,) if isinstance(target, str) else tuple(target)
