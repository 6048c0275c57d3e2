"""An evaluation in the middle of a sharded training run, against the same parameters on one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.datasets import make_pair, write_dataset

EVALUATE = """
import json, sys, jax, optax
from flax import nnx
from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.evaluation.evaluate import make_evaluator
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import Compute
from mimic_jax.training.mesh import make_layout
from mimic_jax.training.state import make_init

layout = make_layout({"data": 1, "tensor": 2}, {"batch": "data", "mlp": "tensor", "embed": "data"}, 4)
sizes = Sizes(16, 1, 2, 16, 1, 2, patch_size=8, mask_ratio=0.5)
make = lambda rngs: build("croco", sizes, rngs, Compute(layout=layout))
graph, _, init = make_init(make, optax.sgd(1e-3), layout)
state = init(jax.random.key(0))
assert len(state.params["decoder"]["mlp"]["expand"]["kernel"].sharding.device_set) == 2
examples = all_examples(open_mixture(sys.argv[1], "data"))
model = nnx.merge(graph, state.params)
evaluator = make_evaluator(model, examples, size=(36, 36), crop=(32, 32), batch=2)
sharded = evaluator(state.params)
with jax.no_tracing():  # all is compiled already
    again = evaluator(state.params)
print(json.dumps([sharded, again, evaluator(jax.device_get(state.params))]))
"""


@pytest.mark.slow
def test_sharded_parameters_give_what_whole_ones_give(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(5)])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(tmp_path / "d")], env=os.environ | flags, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sharded, again, whole = json.loads(done.stdout.splitlines()[-1])
    assert sharded == again
    assert set(sharded) >= {"error", "ratio", "psnr", "correspondence_within_1", "chance_within_2", "pairs"}
    for name, value in whole.items():
        # A tie between two patches may go either way: one of some forty.
        assert abs(sharded[name] - value) < (0.05 if "within" in name or "layer" in name else 1e-4), name
