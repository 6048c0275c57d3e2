"""A config's mesh of devices, checked against what has to lie on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from mimic_jax.command import InputError
from mimic_jax.nn.layout import Axes, Layout, Rules


def make_layout(
    axes: Mapping[str, int], rules: Rules, batch_size: int, devices: Sequence[jax.Device] | None = None
) -> Layout:
    """Devices in a mesh of named axes; one size may be −1, which takes what the others leave.

    Args:
      rules: for each logical axis the axis or axes of the mesh that it is split over.
      batch_size: rows of a batch.
      devices: all by default.

    Raises:
      InputError: the sizes do not multiply to the number of devices, a rule names no axis of the mesh, or the batch
        does not divide over the devices that it is split over.
    """
    count = len(devices or jax.devices())
    sizes = dict(axes)
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"config.mesh={sizes}: each size must be at least 1, or −1 for what the others leave")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        sizes[free[0]] = count // -math.prod(sizes.values())
    if len(free) > 1:
        raise InputError(f"config.mesh={sizes}: one size alone may be −1")
    if math.prod(sizes.values()) != count:
        raise InputError(f"config.mesh={dict(axes)} does not fit {count} devices: sizes must multiply to that")
    # Auto: the compiler places what the shardings of inputs and outputs leave open.
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    try:
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices)
    except NotImplementedError:  # an axis that is not a whole side of a torus, or several
        places = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        mesh = Mesh(places, tuple(sizes), axis_types=auto)
    layout = Layout(mesh, rules)
    for axis, target in rules.items():
        if not set(layout.split(axis)) <= sizes.keys():
            raise InputError(f"config.axis_rules.{axis}={target!r} is no axis of config.mesh, which has {list(sizes)}")
    parts = layout.parts("batch")
    if batch_size % parts:
        raise InputError(
            f"config.batch_size: the {batch_size} pairs of a batch do not divide over {parts} devices of "
            f"config.mesh={sizes}; change one of them"
        )
    return layout


def check_placement(layout: Layout, name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Checks that an array can lie on the mesh as the rules say.

    Raises:
      InputError: names the array, the rule, and what does not go together.
    """
    used: list[str] = []
    for length, axis in zip(shape, axes, strict=True):
        if axis is None:
            continue
        targets, parts = layout.split(axis), layout.parts(axis)
        if length % parts:
            raise InputError(
                f"config.axis_rules.{axis}={layout.rules[axis]!r}: {name} has {length} along {axis}, which does not "
                f"divide over {parts} devices; change config.mesh, or the rule"
            )
        if set(targets) & set(used):
            raise InputError(
                f"config.axis_rules.{axis}={layout.rules[axis]!r}: another axis of {name} lies along it already; "
                "change one"
            )
        used += targets


def held_rows(sharding: NamedSharding, rows: int) -> Int[np.ndarray, " held"]:
    """Which rows of a batch the devices of this process hold, in order; they need not lie together.

    Processes whose devices hold the same rows, as where a model is split over processes, all read them.
    """
    spans = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[span] for span, *_ in spans]))
