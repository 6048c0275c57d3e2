"""The train step on a mesh of several devices, against one device."""

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
from mimic_jax.training.mesh import make_mesh, sharding

STEP = """
import sys, jax, numpy as np, optax
from flax import nnx
from mimic_jax.data.augment import Augmentation
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.training.mesh import make_mesh, sharding
from mimic_jax.training.optimizer import adamw
from mimic_jax.training.state import init_state
from mimic_jax.training.step import make_train_step

rules = {"batch": "data"}
mesh = make_mesh({"data": -1}, rules, 8)
optimizer = adamw(lambda _: 1e-3, b1=0.9, b2=0.95, weight_decay=0.05)
kind, views = sys.argv[2:]
sizes = Sizes(32, 2, 2, 32, 2, 2, patch_size=8)
graph, state = init_state(lambda rngs: build(kind, sizes, rngs), optimizer, jax.random.key(0), mesh, rules)
over_batch, everywhere = sharding(mesh, rules, ("batch",)), sharding(mesh, rules)
single = {"area": (0.2, 1.0), "flip": 0.5}
augmentation = Augmentation((32, 32), views, 0.4, **({"swap": 0.5} if views == "pair" else single))
step = make_train_step(
    graph, optimizer, lambda _: 1e-3, augmentation, state, over_batch, everywhere
)
views = np.random.default_rng(0).integers(0, 256, (2, 8, 40, 40, 3), np.uint8)
batch = {name: jax.device_put(view, over_batch) for name, view in zip(("view1", "view2"), views)}
before = state
for _ in range(2):
    state, metrics = step(state, batch, jax.random.key(1))
assert before.params["mask_token"].is_deleted(), "the state was not donated"
kernel = state.params["encoder"]["blocks"]["mlp"]["expand"]["kernel"]
assert len(kernel.sharding.device_set) == jax.device_count()
assert len(batch["view1"].addressable_shards) == jax.device_count()
np.savez(sys.argv[1], loss=metrics["loss"], norm=metrics["gradient_norm"], kernel=kernel)
"""


@pytest.mark.parametrize(("kind", "views"), [("croco", "pair"), ("mae", "both")])
def test_many_devices_give_what_one_gives(tmp_path, kind, views):
    results = []
    for devices in (1, 4):
        output = tmp_path / f"{devices}.npz"
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", STEP, str(output), kind, views], env=os.environ | flags, check=True)
        results.append(np.load(output))
    for name in ("loss", "norm", "kernel"):
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=1e-5, atol=1e-6)


def test_mesh_sizes_must_fit_the_devices():
    assert make_mesh({"data": -1}, {}, 1).shape == {"data": len(jax.devices())}
    for axes in ({"data": 3}, {"data": -1, "tensor": -1}, {"data": 0}):
        with pytest.raises(InputError, match=r"config\.mesh"):
            make_mesh(axes, {}, 1)
    with pytest.raises(InputError, match=r"config\.axis_rules\.mlp='tensor'"):
        make_mesh({"data": -1}, {"mlp": "tensor"}, 1)


def test_a_batch_must_divide_over_its_devices():
    code = "from mimic_jax.training.mesh import make_mesh\nmake_mesh({'data': -1}, {'batch': 'data'}, 6)"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True)
    assert "config.batch_size=6 does not divide over 4 devices" in done.stderr


def test_any_logical_axis_can_be_split():
    """No parameter has one axis twice, which no sharding could place."""
    sizes = Sizes(32, 2, 2, 32, 2, 2, patch_size=8, positions="learned", position_grid=(4, 4), class_token=True)
    for path, parameter in [
        pair for kind in ("croco", "mae") for pair in nnx.to_flat_state(nnx.state(abstract(kind, sizes)))
    ]:
        names = [axis for axis in parameter.get_metadata()["axes"] if axis]
        assert len(names) == len(set(names)), path
        assert len(parameter.get_metadata()["axes"]) == parameter.get_value().ndim, path


def test_parameters_that_cannot_lie_as_the_rules_say_are_named():
    code = """
from mimic_jax.training.mesh import check_placement, make_mesh
mesh = make_mesh({"data": 2, "tensor": 2}, {}, 4)
check_placement(mesh, {"heads": "tensor", "embed": "data"}, "fine", (8, 2), ("embed", "heads"))
check_placement(mesh, %s)
"""
    for arguments, message in [
        ('{"heads": ("data", "tensor")}, "qkv", (8, 2), ("embed", "heads")', "qkv has 2 along heads.*over 4 devices"),
        ('{"heads": "data", "embed": "data"}, "qkv", (8, 2), ("embed", "heads")', "another axis of qkv lies along it"),
    ]:
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", code % arguments], env=os.environ | flags, capture_output=True, text=True
        )
        assert re.search(rf"InputError: config\.axis_rules\.heads=.*{message}", done.stderr), done.stderr


def test_axes_follow_the_rules():
    mesh = make_mesh({"data": 1, "tensor": 1}, {}, 1)
    spec = sharding(mesh, {"mlp": "tensor", "batch": "data"}, ("layers", "embed", "mlp")).spec
    assert tuple(spec) == (None, None, "tensor")
