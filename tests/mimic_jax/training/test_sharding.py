"""The train step on meshes of eight virtual devices, against one device and against what each layout must send."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from mimic_jax.training.mesh import make_layout

# Prints a line for each case: what two steps give, how much one device holds while the state is made and after, and
# what the compiled step sends.
STEPS = """
import json, sys, jax, numpy as np
from mimic_jax.planning.counts import count
from mimic_jax.training.config import Lengths
from mimic_jax.training.setup import set_up
from tests.mimic_jax.planning.small import parts, small

folder, cases = sys.argv[1], json.loads(sys.argv[2])
for place, (kind, mesh, changes) in enumerate(cases):
    config = small(kind, **changes)
    config.run.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh)))
    setup = set_up(*parts(config), Lengths(10, 1, 10), jax.devices()[: int(np.prod(mesh))])
    key = jax.random.key(1)
    compiled = setup.step.lower(setup.shapes, setup.batch, jax.eval_shape(lambda: key)).compile()
    init = setup.init.lower(key).compile()
    made = init.memory_analysis()
    state = init(jax.random.key(0))
    on_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    rng = np.random.default_rng(0)
    batch = {
        name: jax.device_put(rng.integers(0, 256, view.shape, dtype=np.uint8), view.sharding)
        for name, view in setup.batch.items()
    }
    before = state
    state, metrics = compiled(state, batch, key)
    assert before.params["mask_token"].is_deleted(), "the state was not donated"
    # After one step Adam's first moment is 0.1 of the gradient.
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state.opt_state)}
    moments = {name: leaf for name, leaf in leaves.items() if ".mu" in name}
    assert len(moments) == len(jax.tree.leaves(state.params))
    np.savez(f"{folder}/{place}.npz", **jax.device_get(moments))
    state, metrics = compiled(state, batch, key)
    sent = count(compiled.as_text(), dict(setup.layout.mesh.shape)).sent
    print(json.dumps({
        "metrics": {name: float(value) for name, value in metrics.items()},
        "on_one": on_one,
        "while_made": made.output_size_in_bytes + made.temp_size_in_bytes,
        "parameters": sum(leaf.size * 4 for leaf in jax.tree.leaves(setup.shapes.params)),
        "sent": [[each.kind, list(each.axes), bytes_] for each, bytes_ in sent.items()],
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }))
"""
EIGHT = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
WIDER = {"model__encoder_width": 64, "model__encoder_heads": 4, "model__decoder_width": 64, "model__decoder_heads": 4}

ONE, DATA, FSDP, ALL = (1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)
CASES = [
    ("croco", ONE, {}),
    ("croco", DATA, {}),
    ("croco", FSDP, {}),
    ("croco", ALL, {"run__accumulation_steps": 4, "run__remat": "dots"}),
    ("mae", ONE, {}),
    ("mae", ALL, {}),
]
MORE = [
    ("croco", (1, 1, 4), {}),
    ("croco", (2, 1, 4), {}),
    ("croco", (1, 4, 2), {}),
    ("croco", ALL, {}),
    ("mae", DATA, {}),
    ("mae", FSDP, {}),
    ("croco", ONE, {"run__accumulation_steps": 4}),
    ("croco", ONE, {"run__remat": "full"}),
    ("croco", ONE, {"run__remat": "dots"}),
    ("croco", ONE, {"run__scan_layers": False}),
    ("croco", ONE, {"run__scan_layers": False, "run__remat": "full"}),
]


def run(folder, cases):
    cases = [(kind, mesh, WIDER | changes) for kind, mesh, changes in cases]
    environment = os.environ | {"XLA_FLAGS": EIGHT, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(folder), json.dumps(cases)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for place, each in enumerate(found):
        each["gradients"] = dict(np.load(folder / f"{place}.npz"))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    results = run(tmp_path_factory.mktemp("steps"), CASES)
    return {(kind, mesh): result for (kind, mesh, _), result in zip(CASES, results, strict=True)}


def assert_same(result, reference):
    for name in ("loss", "gradient_norm", "parameter_norm"):
        np.testing.assert_allclose(result["metrics"][name], reference["metrics"][name], rtol=1e-5, err_msg=name)
    assert result["gradients"].keys() == reference["gradients"].keys()
    for name, value in reference["gradients"].items():
        np.testing.assert_allclose(result["gradients"][name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize(("kind", "mesh"), [(kind, mesh) for kind, mesh, _ in CASES if mesh != ONE])
def test_many_devices_give_what_one_gives(found, kind, mesh):
    """The loss, the gradient of every parameter, and the loss after an update; a batch in parts among them."""
    assert_same(found[kind, mesh], found[kind, ONE])


@pytest.mark.slow
def test_every_mesh_and_every_option_gives_the_same(found, tmp_path):
    results = run(tmp_path, MORE)
    for (kind, mesh, changes), result in zip(MORE, results, strict=True):
        assert_same(result, found[kind, ONE])
        if mesh == ALL:
            assert_split(result, parts=changes.get("run__accumulation_steps", 1))


def test_a_device_holds_its_part_of_the_state_alone(found):
    whole = found["croco", ONE]["on_one"]
    assert found["croco", DATA]["on_one"] == whole
    # What FSDP does not split is biases; tensor splits blocks alone.
    np.testing.assert_allclose(found["croco", FSDP]["on_one"], whole / 8, rtol=0.1)
    np.testing.assert_allclose(found["croco", ALL]["on_one"], whole / 4, rtol=0.2)


def test_a_device_makes_its_part_of_the_state_alone(found):
    """At fsdp=8: what it keeps, an eighth and biases, and less than as much again in the making.

    A third of a state is parameters, each made of random bits of its own size: bits and values of a device's part of
    all of them at once are two thirds of what it keeps. Whole parameters alone would be a third of the whole state.
    """
    made, whole = found["croco", FSDP], found["croco", ONE]["on_one"]
    assert made["on_one"] < made["while_made"] < 2 * made["on_one"] < whole / 3


def sent(result):
    """Bytes that a device sends in a step, as multiples of the parameters', by kind and axes."""
    return {(kind, *axes): bytes_ / result["parameters"] for kind, axes, bytes_ in result["sent"]}


def test_data_parallel_sums_each_gradient_once(found):
    """A ring of n devices sends 2 (n − 1)/n of what it sums; nothing else is sent but a few scalars."""
    found = sent(found["croco", DATA])
    assert found.keys() == {("all-reduce", "data")}
    np.testing.assert_allclose(found["all-reduce", "data"], 2 * 7 / 8, rtol=0.03)


def test_fsdp_gathers_parameters_twice_and_nothing_else(found):
    """Forward and backward, each (n − 1)/n of the parameters; the one that starts, the patch embedding, once alone."""
    found = sent(found["croco", FSDP])
    assert {key for key, share in found.items() if share > 0.005} == {("all-gather", "fsdp"), ("all-reduce", "fsdp")}
    assert 1.4 * 7 / 8 < found["all-gather", "fsdp"] <= 2 * 7 / 8
    # The CPU's compiler sums whole gradients and keeps a part; others send half of that in a reduce-scatter.
    np.testing.assert_allclose(found["all-reduce", "fsdp"], 2 * 7 / 8, rtol=0.03)


def assert_split(result, parts):
    """Parameters are gathered over fsdp, and sums of activations are sent over tensor: for every part of the batch."""
    found = sent(result)
    gathered = {key[1:]: share for key, share in found.items() if key[0] == "all-gather"}
    assert gathered.keys() == {("fsdp",)}
    # Forward and backward each device sends half of the half that is on its side of tensor, and of what is not split.
    assert gathered["fsdp",] <= parts * 2 * 0.5 * 0.6
    assert found["all-reduce", "tensor"] > 0
    # The patch embedding and the head are not split over tensor, but their gradients' work is.
    assert sum(share for key, share in found.items() if key[0] in ("all-to-all", "collective-permute")) < 0.06 * parts


@pytest.mark.parametrize(("kind", "parts"), [("croco", 4), ("mae", 1)])
def test_split_layers_gather_over_fsdp_alone(found, kind, parts):
    assert_split(found[kind, ALL], parts)


def test_mesh_sizes_must_fit_the_devices():
    assert make_layout({"data": -1}, {}, 1).mesh.shape == {"data": len(jax.devices())}
    for axes in (
        {"data": 3},
        {"data": -1, "tensor": -1},
        {"data": 0},
        {"data": -1, "tensor": 0},
        {"data": -1, "fsdp": -2},
    ):
        with pytest.raises(InputError, match=r"config\.run\.mesh"):
            make_layout(axes, {}, 1)
    with pytest.raises(InputError, match=r"config\.run\.axis_rules\.mlp='tensor'"):
        make_layout({"data": -1}, {"mlp": "tensor"}, 1)


IN_EIGHT = """
import jax
from mimic_jax.training.mesh import check_sharding, make_layout
def said(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
said(make_layout, {"data": -1}, {"batch": "data"}, 6)
layout = lambda rules: make_layout({"data": 4, "tensor": 2}, rules, 8)
check_sharding(layout({"heads": "tensor", "embed": "data"}), "fine", (8, 2), ("embed", "heads"))
said(check_sharding, layout({"heads": ("data", "tensor")}), "qkv", (8, 2), ("embed", "heads"))
said(check_sharding, layout({"heads": "data", "embed": "data"}), "qkv", (8, 4), ("embed", "heads"))
"""


def test_what_does_not_divide_over_devices_is_named():
    flags = {"XLA_FLAGS": EIGHT, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", IN_EIGHT], env=os.environ | flags, capture_output=True, text=True)
    batch, heads, twice = done.stdout.splitlines()
    assert batch.startswith("InputError: config.batch_size: the 6 records of a batch do not divide over 8 devices"), (
        batch
    )
    assert re.search(r"InputError: config\.run\.axis_rules\.heads=.*qkv has 2 along heads.*over 8 devices", heads), (
        heads
    )
    assert re.search(
        r"InputError: config\.run\.axis_rules\.heads=.*another axis of qkv is split over the same axis of the mesh",
        twice,
    ), twice


def test_any_logical_axis_can_be_split():
    """No parameter has one axis twice, which no sharding could place."""
    sizes = Sizes(32, 2, 2, 32, 2, 2, patch_size=8, positions="learned", position_grid=(4, 4), class_token=True)
    for path, parameter in [
        pair for kind in ("croco", "mae") for pair in nnx.to_flat_state(nnx.state(abstract(kind, sizes)))
    ]:
        names = [axis for axis in parameter.get_metadata()["axes"] if axis]
        assert len(names) == len(set(names)), path
        assert len(parameter.get_metadata()["axes"]) == parameter.get_value().ndim, path


def test_axes_follow_the_rules():
    layout = make_layout({"data": 1, "tensor": 1}, {"mlp": "tensor", "batch": ["data", "tensor"]}, 1)
    assert tuple(layout.sharding(("layers", "embed", "mlp")).spec) == (None, None, "tensor")
    assert tuple(layout.sharding(("batch",)).spec) == (("data", "tensor"),)
