"""Bounds and chips, against arithmetic on published numbers."""

from collections import Counter

import jax
import pytest

from mimic_jax.chips import CHIPS, chip_of
from mimic_jax.command import InputError
from mimic_jax.planning.counts import Collective, Counts
from mimic_jax.planning.roofline import roofline
from mimic_jax.planning.topology import devices_of, environment

MESH = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def test_chips_by_what_their_devices_say():
    assert chip_of("TPU v5 lite").name == "TPU v5e"
    assert chip_of("TPU v5").name == "TPU v5p"
    assert chip_of("TPU v6 lite").name == "TPU v6e"
    assert chip_of("NVIDIA H200").name == "H200"
    assert chip_of("cpu") is None
    assert len({chip.kind for chip in CHIPS}) == len(CHIPS)


def test_the_longest_of_three_is_the_bound():
    """H200: 989 TFLOP/s of bfloat16 and half of that of TF32, 4.8 TB/s, 450 GB/s each way."""
    h200 = chip_of("NVIDIA H200")
    sent = Counter({Collective("all-reduce", ("data",)): 450e9})
    counts = Counts(Counter({"bf16": 989e12, "f32": 989e12}), 4.8e12 * 4, sent, Counter())
    bound = roofline(counts, h200, MESH, int(989e12 * 2), "bfloat16")
    assert (bound.compute, bound.memory, bound.links) == pytest.approx((3, 4, 1))
    assert (bound.seconds, bound.limit) == (bound.memory, "memory")
    assert bound.utilisation == pytest.approx(0.5)
    assert roofline(counts, h200, MESH, int(989e12 * 2), "float32").utilisation == pytest.approx(1.0)


def test_an_axis_along_one_dimension_of_a_torus_has_half_of_its_links():
    """v5e sends 200 GB/s over four links; of a 4×4 slice each axis of a 4×4 mesh has two of them."""
    devices = tpu("v5e:4x4")
    axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2, "devices": devices}
    mesh = jax.make_mesh((4, 4), ("data", "fsdp"), **axes)
    v5e = chip_of(devices[0].device_kind)
    for over, seconds in ((("data",), 2), (("fsdp",), 2), (("data", "fsdp"), 1)):
        counts = Counts(Counter(), 0.0, Counter({Collective("all-gather", over): 200e9}), Counter())
        assert roofline(counts, v5e, mesh, 0, "bfloat16").links == pytest.approx(seconds)
    # Over both axes at once, each on its own links: the two do not add up.
    both = Counter({Collective("all-gather", (axis,)): 200e9 for axis in ("data", "fsdp")})
    assert roofline(Counts(Counter(), 0.0, both, Counter()), v5e, mesh, 0, "bfloat16").links == pytest.approx(2)


@pytest.mark.parametrize(("topology", "chips"), [("v5e:4x4", 16), ("v5p:2x2x2", 8), ("v6e:2x4", 8)])
def test_slices(topology, chips):
    devices = tpu(topology)
    assert len(devices) == chips
    assert chip_of(devices[0].device_kind).name == f"TPU {topology[:3]}"


@pytest.mark.parametrize("topology", ["v5e", "v5e:16", "v5e:4x4x4", "v5p:4x4", "v9:2x2", "cpu:0", "cpu:", "gpu:8", ""])
def test_topologies_that_are_none(topology):
    with pytest.raises(InputError, match="--topology="):
        environment(topology)


def test_flags_that_are_set_already_are_kept():
    assert environment("cpu:8", "--xla_a=1")["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=8"
    assert environment("local") == {}


def tpu(topology):
    pytest.importorskip("libtpu", reason="libtpu is absent: pip install 'mimic_jax[plan]' to test TPU slices")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(topology).items():
            patch.setenv(name, value)
        return devices_of(topology)
