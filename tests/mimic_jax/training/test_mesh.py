"""Which rows of a batch each of two processes reads: real ones, of two devices each."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import finish, free_port

ROWS = 8
QUARTERS = np.arange(ROWS).reshape(4, -1)
# The mesh's sizes, the axes that a batch is split over, and the quarters of a batch that the first and the second
# process hold. Devices fill the mesh's last axis first, and the first process has the first two.
CASES = [
    ({"data": 4, "fsdp": 1, "tensor": 1}, ["data", "fsdp"], [0, 1], [2, 3]),
    ({"data": 2, "fsdp": 2, "tensor": 1}, ["data", "fsdp"], [0, 1], [2, 3]),
    ({"data": 2, "fsdp": 2, "tensor": 1}, ["fsdp", "data"], [0, 2], [1, 3]),
    ({"data": 2, "fsdp": 1, "tensor": 2}, ["data", "fsdp"], [0, 1], [2, 3]),
    ({"data": 1, "fsdp": 1, "tensor": 4}, ["data", "fsdp"], [0, 1, 2, 3], [0, 1, 2, 3]),
    ({"data": 2, "fsdp": 2, "tensor": 1}, ["fsdp"], [0, 1, 2, 3], [0, 1, 2, 3]),
]
HELD = """
import json, sys, jax
from mimic_jax.data.placement import held_rows
from mimic_jax.training.mesh import make_layout

port, process, rows, cases = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
layouts = [make_layout(axes, {"batch": batch}, int(rows)) for axes, batch, *_ in json.loads(cases)]
print(json.dumps([held_rows(layout.sharding(("batch",)), int(rows)).tolist() for layout in layouts]))
"""


@pytest.fixture(scope="module")
def held():
    """Of each process the rows of each case."""
    port = free_port()
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HELD, str(port), str(place), str(ROWS), json.dumps(CASES)], env=environment, **pipes
        )
        for place in range(2)
    ]
    codes, ended = finish(processes, 100)
    assert codes == [0, 0], ended
    return [json.loads(told.splitlines()[-1]) for told, _ in ended]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{axes} {batch}" for axes, batch, *_ in CASES])
def test_each_host_reads_its_share_alone(held, case):
    for found, quarters in zip(held, CASES[case][2:], strict=True):
        assert found[case] == QUARTERS[quarters].ravel().tolist()
