"""Counting on programs that XLA compiles here, against closed forms."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.planning.counts import count, sent_bytes


def counted(function, *shapes, dtype=jnp.float32):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return count(jax.jit(function).lower(*arguments).compile().as_text(), {"data": 1})


def flops(function, *shapes, dtype=jnp.float32):
    found = counted(function, *shapes, dtype=dtype)
    assert not found.unknown
    return sum(found.flops.values())


def test_one_product():
    assert flops(lambda a, b: a @ b, (64, 32), (32, 48)) == 2 * 64 * 32 * 48


def test_a_batched_product_of_two_contracted_axes():
    assert flops(lambda a, b: jnp.einsum("bhqd,bhkdx->bqk", a, b[..., :4, :]), (3, 2, 16, 4), (3, 2, 8, 6, 5)) >= 1
    assert flops(lambda a, b: jnp.einsum("bqhd,bkhd->bqk", a, b), (3, 16, 2, 4), (3, 8, 2, 4)) == 2 * 3 * 16 * 8 * 8


def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scan_counts_every_trip():
    assert flops(layers, (16, 32), (24, 32, 32)) == 24 * 2 * 16 * 32 * 32


def test_a_scan_in_a_scan():
    def outer(x, weights):
        return jax.lax.scan(lambda x, inner: (layers(x, inner), None), x, weights)[0]

    assert flops(outer, (16, 32), (5, 7, 32, 32)) == 5 * 7 * 2 * 16 * 32 * 32


def test_backward_is_two_products_a_layer_and_a_recomputed_one_under_remat():
    product = 2 * 16 * 32 * 32

    def loss(x, weights):
        return layers(x, weights).sum()

    assert flops(jax.grad(loss, (0, 1)), (16, 32), (6, 32, 32)) == 6 * 3 * product

    def again(x, weights):
        apply = jax.checkpoint(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w), None))
        return jax.lax.scan(apply, x, weights)[0].sum()

    # Two products a layer: forward 2, backward 4, and the first again.
    assert flops(jax.grad(again, (0, 1)), (16, 32), (6, 32, 32)) == pytest.approx(6 * 8 * product, rel=0.13)


def test_element_types_are_told_apart():
    found = counted(lambda a, b: (a @ b, a.astype(jnp.float32) @ b.astype(jnp.float32)), (64, 64), (64, 64))
    assert sum(found.flops.values()) in (2 * 64**3, 4 * 64**3)
    assert set(found.flops) == {"f32"}


@pytest.mark.parametrize(
    ("stride", "padding", "lhs_dilation", "rhs_dilation"),
    [(1, (0, 0), 1, 1), (2, (2, 1), 1, 1), (1, (3, 3), 2, 1), (3, (0, 4), 3, 2), (1, (-1, 0), 1, 1)],
)
def test_convolutions_skip_padding_and_holes(stride, padding, lhs_dilation, rhs_dilation):
    """Against a convolution of ones in NumPy, which counts the true places that each output meets."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,), (padding,), lhs_dilation=(lhs_dilation,), rhs_dilation=(rhs_dilation,)
        )

    size, width = 11, 4
    grid = np.zeros((size - 1) * lhs_dilation + 1)
    grid[::lhs_dilation] = 1
    low, high = padding
    grid = np.pad(grid, (max(low, 0), max(high, 0)))[max(-low, 0) :]
    taps = np.arange(width) * rhs_dilation
    met = sum(grid[start + taps].sum() for start in range(0, len(grid) - taps[-1], stride))
    text = HAND_CONVOLUTION.format(
        stride=stride, low=low, high=high, hole=lhs_dilation, dilation=rhs_dilation, outputs=output_size(convolve)
    )
    assert sum(count(text, {"data": 1}).flops.values()) == 2 * 2 * 3 * 5 * met


def output_size(convolve):
    shapes = jax.ShapeDtypeStruct((2, 3, 11), jnp.float32), jax.ShapeDtypeStruct((5, 3, 4), jnp.float32)
    return jax.eval_shape(convolve, *shapes).shape[-1]


# As a TPU's compiler writes its products; the CPU's would make other instructions of it.
HAND_CONVOLUTION = """HloModule m

ENTRY %main (x: f32[2,3,11], k: f32[5,3,4]) -> f32[2,5,{outputs}] {{
  %x = f32[2,3,11]{{2,1,0:T(8,128)}} parameter(0)
  %k = f32[5,3,4]{{2,1,0:T(8,128)}} parameter(1)
  ROOT %c = f32[2,5,{outputs}]{{2,1,0:T(8,128)}} convolution(%x, %k), window={{size=4 stride={stride} pad={low}_{high} \
lhs_dilate={hole} rhs_dilate={dilation}}}, dim_labels=bf0_oi0->bf0
}}
"""

CUBLAS = """HloModule m

ENTRY %main (a: bf16[64,32], b: bf16[32,48]) -> bf16[64,48] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,48]{1,0} parameter(1)
  %g = (bf16[64,48]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %u = f32[2]{0} custom-call(%b), custom_call_target="somebodys_kernel"
  ROOT %r = bf16[64,48]{1,0} get-tuple-element(%g), index=0
}
"""


def test_products_by_a_library_are_counted_and_unknown_kernels_named():
    found = count(CUBLAS, {"data": 1})
    assert dict(found.flops) == {"bf16": 2 * 64 * 32 * 48}
    assert ["somebodys_kernel" in what for what in found.unknown] == [True]


def test_bytes_of_an_addition():
    assert counted(lambda a, b: a + b, (1000, 1000), (1000, 1000)).bytes == 3 * 4 * 10**6


def test_a_scan_reads_a_slice_a_trip_and_not_all_of_its_layers():
    """Of 32 layers one is read each trip: counted whole each time they would be 32 times as much."""

    def run(x, weights):
        return jax.lax.scan(lambda x, w: (x + w, None), x, weights)[0]

    once = 4 * 32 * 512 * 512
    # Each trip reads a layer and the sum, and writes the sum; a copy of each may come with it.
    assert 2 * once < counted(run, (512, 512), (32, 512, 512)).bytes < 8 * once


COLLECTIVES = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mimic_jax.planning.counts import count

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
everywhere = P(("data", "fsdp"))
x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, everywhere))  # [8, 32] on each
functions = {
    "psum": lambda x: jax.lax.psum(x, "fsdp"),
    "psum_both": lambda x: jax.lax.psum(x, ("data", "fsdp")),
    "all_gather": lambda x: jax.lax.all_gather(x, "data", tiled=True),
    "psum_scatter": lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
    "all_to_all": lambda x: jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True),
    "ppermute": lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
    "scan": lambda x: jax.lax.scan(lambda x, _: (jnp.tanh(jax.lax.psum(x, "fsdp")), None), x, None, length=9)[0],
}
found = {}
for name, function in functions.items():
    mapped = jax.shard_map(function, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
    sent = count(jax.jit(mapped).lower(x).compile().as_text(), dict(mesh.shape)).sent
    found[name] = [[key.kind, list(key.axes), value] for key, value in sent.items()]

# What the compiler puts in by itself: parameters split over fsdp are gathered, the batch is split over both.
w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
gather = jax.jit(lambda w: w * 2, out_shardings=NamedSharding(mesh, P()))
sent = count(gather.lower(w).compile().as_text(), dict(mesh.shape)).sent
found["compiler"] = [[key.kind, list(key.axes), value] for key, value in sent.items()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def collectives():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", COLLECTIVES], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOCAL = 8 * 32 * 4  # bytes of the array on each of the devices


@pytest.mark.parametrize(
    ("name", "kind", "axes", "sent"),
    [
        ("psum", "all-reduce", ["fsdp"], 2 * 3 / 4 * LOCAL),
        ("psum_both", "all-reduce", ["data", "fsdp"], 2 * 7 / 8 * LOCAL),
        ("all_gather", "all-gather", ["data"], LOCAL),
        ("psum_scatter", "reduce-scatter", ["fsdp"], 3 / 4 * LOCAL),
        ("all_to_all", "all-to-all", ["fsdp"], 3 / 4 * LOCAL),
        ("ppermute", "collective-permute", ["fsdp"], LOCAL),
        ("scan", "all-reduce", ["fsdp"], 9 * 2 * 3 / 4 * LOCAL),
        ("compiler", "all-gather", ["fsdp"], 3 * 8 * 16 * 4),
    ],
)
def test_collectives(collectives, name, kind, axes, sent):
    assert collectives[name] == [[kind, axes, sent]]


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    whole = 1024.0
    parts = sent_bytes("reduce-scatter", whole, 8) + sent_bytes("all-gather", whole / 8, 8)
    assert sent_bytes("all-reduce", whole, 8) == parts


# As libtpu writes a gather that runs beside a product: started, repeated in the product's fusion, and again at its end.
ASYNC = """HloModule m

%start (p: bf16[16,64]) -> (bf16[16,64], bf16[64,64]) {
  %p = bf16[16,64]{1,0} parameter(0)
  %g = bf16[64,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
frontend_attributes={chain_id="3"}
  ROOT %s = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (p: bf16[16,64], b: bf16[64,64], x: bf16[8,64]) -> (bf16[16,64], bf16[64,64], bf16[8,64]) {
  %p = bf16[16,64]{1,0} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %x = bf16[8,64]{1,0} parameter(2)
  %g = bf16[64,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
frontend_attributes={chain_id="3"}
  %y = bf16[8,64]{1,0} negate(%x)
  ROOT %t = (bf16[16,64]{1,0}, bf16[64,64]{1,0}, bf16[8,64]{1,0}) tuple(%p, %b, %y)
}

%done (p: bf16[16,64], b: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[16,64]{1,0} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %g = bf16[64,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
frontend_attributes={chain_id="3"}
  ROOT %d = bf16[64,64]{1,0} custom-call(%p, %b, %g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[16,64], x: bf16[8,64]) -> bf16[64,64] {
  %p = bf16[16,64]{1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %s = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) fusion(%p), kind=kCustom, calls=%start
  %s0 = bf16[16,64]{1,0} get-tuple-element(%s), index=0
  %s1 = bf16[64,64]{1,0} get-tuple-element(%s), index=1
  %f = (bf16[16,64]{1,0}, bf16[64,64]{1,0}, bf16[8,64]{1,0}) fusion(%s0, %s1, %x), kind=kCustom, calls=%beside
  %f0 = bf16[16,64]{1,0} get-tuple-element(%f), index=0
  %f1 = bf16[64,64]{1,0} get-tuple-element(%f), index=1
  ROOT %d = bf16[64,64]{1,0} fusion(%f0, %f1), kind=kCustom, calls=%done
}
"""

SCATTER = """HloModule m

%all-reduce-scatter.1 (p: f32[64,32]) -> f32[16,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %r = f32[64,32]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %d = f32[16,32]{1,0} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={16,32}
}

ENTRY %main (p: f32[64,32]) -> f32[16,32] {
  %p = f32[64,32]{1,0} parameter(0)
  ROOT %f = f32[16,32]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_gather_beside_a_product_is_counted_once():
    found = count(ASYNC, {"fsdp": 4, "tensor": 2})
    assert {(key.kind, key.axes): sent for key, sent in found.sent.items()} == {
        ("all-gather", ("fsdp",)): 3 * 16 * 64 * 2,
    }
    assert not found.unknown
    # Reads a quarter and writes the whole; the negation reads and writes its own.
    assert found.bytes == 2 * (16 * 64 + 64 * 64 + 2 * 8 * 64)


def test_a_sum_of_which_each_keeps_its_part_is_a_reduce_scatter():
    found = count(SCATTER, {"fsdp": 4, "tensor": 2})
    assert {(key.kind, key.axes): sent for key, sent in found.sent.items()} == {
        ("reduce-scatter", ("fsdp",)): 3 / 4 * 64 * 32 * 4,
    }
