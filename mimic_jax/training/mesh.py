"""A config's mesh of devices, checked against the arrays that are sharded over it."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from mimic_jax.command import InputError
from mimic_jax.nn.layout import Axes, Layout, Rules


def make_layout(
    axes: Mapping[str, int], rules: Rules, rows: int, devices: Sequence[jax.Device] | None = None
) -> Layout:
    """Devices in a mesh of named axes; one size may be −1, which takes the devices that the other axes leave.

    Args:
      rules: for each logical axis the axis or axes of the mesh that it is split over.
      rows: records of a batch.
      devices: all by default.

    Raises:
      InputError: the sizes do not multiply to the number of devices, a rule names no axis of the mesh, or the batch
        does not divide over its devices.
    """
    count = len(devices or jax.devices())
    sizes = dict(axes)
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"config.run.mesh={sizes}: each size must be at least 1, or −1 for the devices that are left")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        sizes[free[0]] = count // -math.prod(sizes.values())
    if len(free) > 1:
        raise InputError(f"config.run.mesh={sizes}: only one size may be −1")
    if math.prod(sizes.values()) != count:
        raise InputError(f"config.run.mesh={dict(axes)} does not fit {count} devices: sizes must multiply to that")
    # Auto: the compiler decides what the shardings of inputs and outputs leave open.
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    try:
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices)
    except NotImplementedError:  # an axis that is not a whole side of a torus, or several
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        mesh = Mesh(grid, tuple(sizes), axis_types=auto)
    layout = Layout(mesh, rules)
    for axis, target in rules.items():
        if not set(layout.mesh_axes(axis)) <= sizes.keys():
            raise InputError(
                f"config.run.axis_rules.{axis}={target!r} names no axis of config.run.mesh, which has {list(sizes)}"
            )
    shards = layout.shards("batch")
    if rows % shards:
        raise InputError(
            f"config.batch_size: the {rows} records of a batch do not divide over {shards} devices of "
            f"config.run.mesh={sizes}; change one of them"
        )
    return layout


def check_sharding(layout: Layout, name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Checks that an array can be sharded as the rules say.

    Raises:
      InputError: names the array, the rule and the conflict.
    """
    used: list[str] = []
    for length, axis in zip(shape, axes, strict=True):
        if axis is None:
            continue
        targets, shards = layout.mesh_axes(axis), layout.shards(axis)
        if length % shards:
            raise InputError(
                f"config.run.axis_rules.{axis}={layout.rules[axis]!r}: {name} has {length} along {axis}, which does "
                f"not divide over {shards} devices; change config.run.mesh, or the rule"
            )
        if set(targets) & set(used):
            raise InputError(
                f"config.run.axis_rules.{axis}={layout.rules[axis]!r}: another axis of {name} is split over the same "
                "axis of the mesh; change one"
            )
        used += targets
