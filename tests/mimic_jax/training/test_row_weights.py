"""Rows that weigh differently: the same loss and gradient however a batch is divided, and as NumPy has them."""

import jax
import numpy as np
import pytest
from flax import nnx

from mimic_jax.training import config as configs
from mimic_jax.training.config import Lengths
from mimic_jax.training.setup import set_up
from tests.devices import on_devices
from tests.toy_task import PIXELS, ROWS, batch_of, make_toy, toy_config

ROWS_OF = {"plain": range(2 * ROWS), "all of weight 0": [7, 15] * ROWS}


def step(mesh: dict[str, int], accumulation_steps: int, indices: list[int]) -> dict:
    """Metrics of one step, the gradients by Adam's first moment, and the initial parameters."""
    changes = {"batch_size": len(indices), "run__mesh": mesh, "run__accumulation_steps": accumulation_steps}
    config = toy_config(**changes)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    setup = set_up(make_toy(config), configs.read(config), Lengths(10, 0, 10), devices)
    batch = {name: jax.device_put(each, setup.batch[name].sharding) for name, each in batch_of(indices).items()}
    state = setup.init(jax.random.key(0))
    before = jax.tree.map(lambda leaf: np.array(leaf).tolist(), state.params)
    shards = state.params["encoder"]["kernel"].addressable_shards
    state, metrics = setup.step(state, batch, jax.random.key(1))
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state.opt_state)}
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "gradients": {name: (10 * np.array(leaf)).tolist() for name, leaf in flat.items() if ".mu" in name},
        "before": before,
        "largest_shard": max(shard.data.size for shard in shards),
        "after": jax.tree.map(lambda leaf: np.array(leaf).tolist(), state.params),
    }


def steps() -> list[dict]:
    """One device; in four parts; on a mesh; on a mesh in two parts; and without any weight."""
    one, mesh = {"data": 1, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 1}
    plain, nothing = (list(rows) for rows in ROWS_OF.values())
    return [
        step(one, 1, plain),
        step(one, 4, plain),
        step(mesh, 1, plain),
        step(mesh, 2, plain),
        step(one, 1, nothing),
    ]


@pytest.fixture(scope="module")
def found():
    return on_devices(4, steps)


@pytest.fixture(scope="module")
def expected(found):
    """Loss, L1 error and gradients by NumPy, in float64, with the derivative by hand."""
    batch = batch_of(ROWS_OF["plain"])
    params = jax.tree.map(np.array, found[0]["before"], is_leaf=lambda leaf: isinstance(leaf, list))
    first, second = params["encoder"], params["head"]
    image, valid = batch["image"].astype(float), batch["valid"]
    hidden = np.tanh(image @ first["kernel"] + first["bias"])
    error = np.where(valid, hidden @ second["kernel"] + second["bias"] - batch["target"], 0)
    count = valid.sum(-1)
    assert {0} < set(count.tolist())
    assert count[count > 0].min() < 60 < 200 < count.max()
    per_row = np.square(error).sum(-1) / np.maximum(count, 1)
    of_output = 2 * error / count.sum()  # each pixel of every row counts the same
    of_hidden = of_output @ second["kernel"].T * (1 - hidden**2)
    gradients = {
        "encoder": {"kernel": image.T @ of_hidden, "bias": of_hidden.sum(0)},
        "head": {"kernel": hidden.T @ of_output, "bias": of_output.sum(0)},
    }
    loss = (per_row * count).sum() / count.sum()
    return loss, np.abs(error).sum() / count.sum(), nnx.traversals.flatten_mapping(gradients)


@pytest.mark.parametrize("way", range(4), ids=["one device", "four parts", "2×2 devices", "2×2 devices in two parts"])
def test_a_batch_gives_the_same_however_it_is_divided(found, expected, way):
    loss, l1, gradients = expected
    assert found[way]["metrics"]["loss"] == pytest.approx(loss, rel=1e-6)
    assert found[way]["metrics"]["l1"] == pytest.approx(l1, rel=1e-6)
    assert len(found[way]["gradients"]) == 4
    for name, value in found[way]["gradients"].items():
        (path,) = (path for path in gradients if all(f"['{part}']" in name for part in path))
        scale = np.abs(gradients[path]).max()
        np.testing.assert_allclose(value, gradients[path], atol=1e-6 * scale, rtol=0, err_msg=name)
        np.testing.assert_allclose(value, found[0]["gradients"][name], atol=1e-6 * scale, rtol=0, err_msg=name)


def test_the_mesh_splits_the_parameters(found):
    assert [each["largest_shard"] for each in found[:4]] == [PIXELS * 16] * 2 + [PIXELS * 16 // 2] * 2


def test_without_any_weight_there_is_no_gradient(found):
    nothing = found[4]
    assert nothing["metrics"]["loss"] == nothing["metrics"]["gradient_norm"] == nothing["metrics"]["skipped"] == 0
    assert all(not np.any(value) for value in nothing["gradients"].values())
