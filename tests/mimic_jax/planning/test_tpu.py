"""The train step as the compiler of TPUs makes it, which a CPU's does otherwise. Nothing is run."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
from flax import nnx

from mimic_jax.models.kinds import abstract
from mimic_jax.planning.hlo import parse
from mimic_jax.planning.topology import environment
from mimic_jax.planning.traffic import continues
from tests.mimic_jax.planning.small import parts, small

pytest.importorskip("libtpu", reason="libtpu is absent: make extras, or pip install 'mimic_jax[plan]', to test TPUs")

# In a process of its own: libtpu ends one whose XLA_FLAGS it does not know. Writes a program to the folder it is given.
COMPILE = """
import dataclasses, json, sys, jax
from pathlib import Path
from mimic_jax.planning.plan import make_plan
from mimic_jax.planning.topology import devices_of
from mimic_jax.training.config import Lengths
from mimic_jax.training.setup import set_up
from tests.mimic_jax.planning.small import parts, small

config = small(**json.loads(sys.argv[2]))
with jax.default_matmul_precision("highest"):
    setup = set_up(*parts(config), Lengths(2, 1, 2), devices_of("v5e:2x2"))
    lowered = setup.step.lower(setup.shapes, setup.batch, jax.eval_shape(lambda: jax.random.key(0)))
(Path(sys.argv[1]) / "step.hlo").write_text(lowered.compile().as_text())
for topology, kind in json.loads(sys.argv[3]):
    plan = make_plan(*parts(small(kind)), devices_of(topology))
    print(json.dumps({
        "chip": plan.chip.name,
        "mesh": plan.mesh,
        "fits": plan.fits,
        "memory": dataclasses.asdict(plan.memory),
        "closed_form": plan.model_flops + plan.augmentation_flops,
        "compiled": sum(plan.counts.flops.values()) * plan.devices,
        "moved": plan.counts.bytes,
        "sent": [[key.kind, list(key.axes), bytes_] for key, bytes_ in plan.counts.sent.items()],
        "unknown": list(plan.counts.unknown),
        "bound": dataclasses.asdict(plan.bound),
    }))
"""
SPLIT = {"compute_dtype": "bfloat16", "run__mesh__data": 1, "run__mesh__fsdp": 4}
PLANS = [("v5p:2x2x1", "croco"), ("v6e:2x2", "mae")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The text of a step, and what there is to say of the plans."""
    folder = tmp_path_factory.mktemp("step")
    variables = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)} | environment("v5e:2x2")
    command = [sys.executable, "-c", COMPILE, str(folder), json.dumps(SPLIT), json.dumps(PLANS)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    plans = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return (folder / "step.hlo").read_text(), dict(zip(PLANS, plans, strict=True))


# In the small model the kernels have 1024 elements a layer and more, biases and norms 192 at most.
KERNEL = 512


def test_kernels_are_gathered_in_the_compute_type_and_their_gradients_summed_in_float32(compiled):
    """In elements, with one layer of each stack, which is a loop. No CPU shows it: its products are of float32.

    A TPU multiplies float32 as bfloat16, and gathers it so in any case unless it is asked for full precision, as here.
    """
    sizes = parts(small(**SPLIT))[0].backbone.sizes
    kernels = outside = 0
    for path, parameter in nnx.to_flat_state(nnx.state(abstract("croco", sizes))):
        if path[-1] == "kernel":
            shape, layered = parameter.shape, parameter.get_metadata()["axes"][0] == "layers"
            kernels += math.prod(shape[layered:])
            outside += math.prod(shape) * (not layered)

    gathered, summed = Counter(), Counter()
    for computation in parse(compiled[0]).computations.values():
        for each in computation.instructions.values():
            kind = each.opcode.removesuffix("-start")
            for shape in (shape for name in each.operands for shape in computation.instructions[name].shapes):
                if kind == "all-gather" and not continues(each, computation) and 4 * shape.elements > KERNEL:
                    gathered[shape.dtype] += 4 * shape.elements
                if kind in ("all-reduce", "reduce-scatter") and shape.elements > KERNEL:
                    summed[shape.dtype] += shape.elements
    assert gathered.keys() == {"bf16"}
    # For the forward pass and for the backward pass, between which those of no stack can be left as they are.
    assert 2 * kernels - outside <= gathered["bf16"] <= 2 * kernels
    assert summed.keys() == {"f32"}
    # Once; some of 48 columns as 64, which divide into tiles.
    assert kernels <= summed["f32"] <= 64 / 48 * kernels


@pytest.mark.parametrize(("topology", "kind"), PLANS)
def test_plans_of_other_slices(compiled, topology, kind):
    plan = compiled[1][topology, kind]
    assert plan["chip"] == f"TPU {topology[:3]}"
    assert not plan["unknown"]
    # Attention's scores are computed again, which is 1 % here.
    assert plan["compiled"] == pytest.approx(plan["closed_form"], rel=0.02)
    # A ring of 4 sends each gradient twice but for a quarter; gradients are as large as parameters.
    (over,) = plan["sent"]
    assert over[:2] == ["all-reduce", ["data"]]
    parameters = plan["memory"]["parameters"]
    assert over[2] == pytest.approx(2 * 3 / 4 * parameters, rel=0.05)
    # Parameters and Adam's moments are read and written.
    assert plan["moved"] > 2 * 3 * parameters
    assert plan["memory"]["peak"] > 3 * parameters + plan["memory"]["batch"]
    assert plan["fits"]
    assert all(plan["bound"][name] > 0 for name in ("compute", "memory", "links"))
