"""A plan of the real train step: its FLOPs against the closed form, its bytes against the shapes' own."""

import json
import os
import subprocess
import sys

import jax
import pytest

from mimic_jax.command import InputError
from mimic_jax.models.flops import model_flops
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes, published
from mimic_jax.planning.plan import make_plan
from tests.mimic_jax.planning.small import parts, small

# In a process of its own, where XLA runs all its passes but makes its machine code, which nobody runs, in a hurry.
PLAN = """
import dataclasses, json, sys, jax
from mimic_jax.planning.plan import make_plan
from tests.mimic_jax.planning.small import parts, small

split = small("croco")
split.run.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
found = {}
for kind, config, devices in (("croco", split, jax.devices()), ("mae", small("mae"), jax.devices()[:1])):
    plan = make_plan(*parts(config), devices, examples=1000)
    found[kind] = {
        "memory": dataclasses.asdict(plan.memory),
        "closed_form": plan.model_flops + plan.augmentation_flops,
        "compiled": sum(plan.counts.flops.values()) * plan.devices,
        "sent": {f"{key.kind} over {', '.join(key.axes)}": sent for key, sent in plan.counts.sent.items()},
        "unknown": list(plan.counts.unknown),
        "bound": plan.bound,
        "fits": plan.fits,
        "steps": plan.steps,
    }
print(json.dumps(found))
"""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def plans():
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {QUICK}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", PLAN], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["croco", "mae"])
def planned(request, plans):
    return small(request.param), plans[request.param]


def test_what_is_compiled_has_the_flops_of_the_closed_form(planned):
    """As the MAE on one device has; tests/launch/test_plan.py has a CroCo on eight."""
    config, plan = planned
    assert not plan["unknown"]
    if config.model.kind == "mae":
        assert plan["compiled"] == pytest.approx(plan["closed_form"], rel=0.02)
    else:  # Both devices of a tensor pair embed patches and predict pixels: no rule splits these.
        assert plan["closed_form"] < plan["compiled"] < 2 * plan["closed_form"]


def test_bytes_of_parameters_and_optimizer(planned):
    """float32 parameters, and two moments of each beside two counters."""
    config, plan = planned
    task, _ = parts(config)
    shapes = jax.tree.leaves(abstract(task.backbone.kind, task.backbone.sizes))
    parameters = sum(4 * leaf.size for leaf in shapes)
    memory = plan["memory"]
    assert memory["optimizer"] == 2 * memory["parameters"] + 2 * 4
    if config.model.kind == "mae":
        assert memory["parameters"] == parameters
        assert memory["batch"] == 2 * 8 * 40 * 40 * 3
    else:  # Kernels of attention and MLPs are split over fsdp and tensor, others over one or none; pairs over two axes.
        assert parameters / 4 < memory["parameters"] < parameters / 3
        assert memory["batch"] == 2 * 16 // 4 * 40 * 40 * 3
    assert memory["peak"] >= 3 * memory["parameters"] + memory["batch"] + memory["temporaries"]


def test_a_cpu_has_no_published_rates(planned):
    _, plan = planned
    assert plan["bound"] is None
    assert plan["fits"] is None


def test_what_is_sent(plans):
    """One device sends nothing. Split parameters are gathered over their axis, parts of sums joined over theirs."""
    assert plans["mae"]["sent"] == {}
    sent, memory = plans["croco"]["sent"], plans["croco"]["memory"]
    assert sent["all-reduce over tensor"] > 0
    # Of two devices each sends its half: of all that is split once for the forward pass and once for the backward pass.
    assert memory["parameters"] < sent["all-gather over fsdp"] <= 2 * memory["parameters"]
    assert "all-gather over data" not in sent


def test_the_length_of_a_run(planned):
    """Given in steps; or three epochs of 1000 pairs, each two images, 16 images a step."""
    config, plan = planned
    assert plan["steps"] == {"croco": 400, "mae": 3 * 2000 / 16}[config.model.kind]


def test_mistakes_are_told():
    with pytest.raises(InputError, match=r"config\.run\.mesh=.* does not fit"):
        make_plan(*parts(small(run__mesh__data=3)), jax.devices()[:1])
    with pytest.raises(InputError, match=r"config\.batch_size=0"):
        make_plan(*parts(small(batch_size=0)), jax.devices()[:1])


def test_flops_of_a_known_model():
    """ViT-L at 224 pixels, all patches seen: 61.6 G multiply-adds an image (DeiT III, arXiv 2204.07118, table 1)."""
    sizes = Sizes(**published("vit_l", "small", positions="cosine", class_token=True, mask_ratio=1e-6))
    # One patch of 196 is left out for so small a ratio, which is within the tolerance.
    parts = model_flops("mae", sizes, (224, 224), 1)
    forward = parts["encoder"] / 3 + parts["patch embedding"] / 2
    assert forward == pytest.approx(2 * 61.6e9, rel=0.02)


def test_flops_of_a_batch_are_those_of_its_images():
    sizes = Sizes(**published("vit_b", "base", positions="rope100"))
    one, many = (sum(model_flops("croco", sizes, (224, 224), batch).values()) for batch in (1, 7))
    assert many == 7 * one


def test_no_products_in_augmentation_without_resizing():
    assert parts(small())[0].augmentation_flops == 0
    # Two products a view, of float32 matrices: rows and columns of a window from 40 to 32 pixels, three colours.
    window = 2 * 3 * (32 * 40 * 40 + 32 * 40 * 32)
    assert parts(small("mae"))[0].augmentation_flops == 16 * window
