"""The devices that a plan is for: a TPU slice that is not here, virtual CPU devices, or what this machine has."""

import re
from typing import TYPE_CHECKING

from mimic_jax.command import InputError

if TYPE_CHECKING:
    import jax

TPU_DIMENSIONS = {"v5e": 2, "v6e": 2, "v5p": 3}
EXAMPLES = "as v5e:16x16, v5p:4x4x4, v6e:4x4, cpu:8 or local"


def environment(topology: str, flags: str = "") -> dict[str, str]:
    """Variables that must be set before jax is first imported.

    Args:
      flags: what XLA_FLAGS is now.

    Raises:
      InputError: the topology is none that can be planned for.
    """
    family, _, shape = topology.partition(":")
    if topology == "local":
        return {}
    # The machine's own accelerators are left to others.
    alone = {"JAX_PLATFORMS": "cpu"}
    if family == "cpu" and re.fullmatch(r"[1-9]\d{0,3}", shape):
        return alone | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={shape}".strip()}
    if family not in TPU_DIMENSIONS:
        raise InputError(f"--topology={topology} is no topology that is known here; give it {EXAMPLES}")
    dimensions = TPU_DIMENSIONS[family]
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        raise InputError(f"--topology={topology}: a {family} slice has {dimensions} sizes; give it {EXAMPLES}")
    # Without these libtpu asks the network and its lock file for a TPU, of which it needs none to compile for one.
    names = ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    return (
        alone | dict.fromkeys(names, "1") | {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    )


def devices_of(topology: str) -> list["jax.Device"]:
    """Devices to lower and compile for; those of a TPU slice are descriptions alone.

    Raises:
      InputError: libtpu is not installed, or has no such slice.
    """
    import jax
    from jax.experimental import topologies

    if topology == "local" or topology.startswith("cpu:"):
        return jax.devices()
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise InputError(
                f"--topology={topology} is compiled by libtpu, which is not installed: pip install 'mimic_jax[plan]'"
            ) from error
        raise InputError(f"--topology={topology}: libtpu has no such slice ({error})") from error
