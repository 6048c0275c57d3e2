"""Layouts: which logical axes stay sharded in computation, and numbers on eight virtual devices against one."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mimic_jax.nn.layout import Layout

ROWS, EMBED_APART = {"data": 2, "fsdp": 4}, {"data": 2, "model": 2, "tensor": 2}
CASES = {
    "one device": ({}, {}),
    "fsdp": (ROWS, {"batch": ["data", "fsdp"], "embed": "fsdp"}),
    "heads over the batch's axis": (ROWS, {"batch": ["data", "fsdp"], "heads": "data", "mlp": "fsdp"}),
    "embed on its own axis": (EMBED_APART, {"batch": "data", "embed": "model", "heads": "tensor", "mlp": "tensor"}),
    "layers and pixels": (EMBED_APART, {"batch": "data", "layers": "model", "pixels": "tensor"}),
}
# Saves the loss of a CroCo and its gradients for each case.
GRADIENTS = """
import json, math, sys, jax, numpy as np
from flax import nnx
from mimic_jax.models import completion
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import Compute
from mimic_jax.nn.layout import Layout

folder, cases = sys.argv[1], json.loads(sys.argv[2])
views = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 24, 3)))
for index, (mesh, rules) in enumerate(cases):
    shape = tuple(mesh.values())
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    devices = jax.devices()[: math.prod(shape)]
    layout = Layout(jax.make_mesh(shape, tuple(mesh), axis_types=auto, devices=devices), rules)
    compute = Compute(remat="dots", layout=layout if mesh else None)
    model = build("croco", Sizes(32, 2, 2, 32, 2, 2, patch_size=8), nnx.Rngs(0), compute)
    visible = completion.random_visible(jax.random.key(1), views[0], model.sizes)
    graph, params = nnx.split(model)
    rows = views, visible
    if mesh:
        shardings = nnx.map_state(lambda _, each: layout.sharding(each.get_metadata()["axes"]), params)
        params = jax.device_put(params, jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(shardings)))
        rows = jax.device_put(rows, layout.sharding(("batch",)))
    loss = lambda params, rows: completion.loss(nnx.merge(graph, params), *rows).mean()
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, rows)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(gradients)}
    np.savez(f"{folder}/{index}.npz", loss=value, **jax.device_get(leaves))
"""


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", GRADIENTS, str(folder), json.dumps(list(CASES.values()))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: dict(np.load(folder / f"{index}.npz")) for index, name in enumerate(CASES)}


@pytest.mark.parametrize("name", [name for name in CASES if name != "one device"])
def test_sharded_gradients_equal_those_of_one_device(gradients, name):
    expected, found = gradients["one device"], gradients[name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=key)


def layout(rules):
    return Layout(Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor")), rules)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor"}, (None, "heads", None)),
        ({"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "data"}, (None, None, None)),
        ({"batch": "data", "embed": "fsdp", "heads": "tensor"}, ("embed", "heads", None)),
        # One mesh axis in common with the batch is enough: the whole axis is gathered.
        ({"batch": "data", "embed": ("data", "tensor")}, (None, "heads", None)),
    ],
)
def test_an_axis_that_shares_a_mesh_axis_with_the_batch_is_gathered_for_use(rules, expected):
    found = layout(rules)
    used = found.axes_in_use(("embed", "heads", None))
    assert [found.mesh_axes(axis) for axis in used] == [found.mesh_axes(axis) for axis in expected]


def test_axes_without_a_rule_are_replicated():
    found = layout({"mlp": ("fsdp", "tensor"), "embed": None})
    assert found.mesh_axes("mlp") == ("fsdp", "tensor")
    assert found.mesh_axes("embed") == found.mesh_axes("pixels") == found.mesh_axes(None) == ()
    assert tuple(found.sharding(("embed", "mlp")).spec) == (None, ("fsdp", "tensor"))
