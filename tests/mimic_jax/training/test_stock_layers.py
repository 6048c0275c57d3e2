"""Stock layers of Flax in training: running statistics, dropout, and a gradient inside a loss."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import checkpoints
from mimic_jax.task import Evaluation, Results, Terms
from mimic_jax.training import config as configs
from mimic_jax.training import loop
from mimic_jax.training.config import Lengths
from mimic_jax.training.setup import set_up
from tests.devices import on_devices
from tests.toy_task import ROWS, batch_of, make_toy, toy_config

MOMENTUM, RATE = 0.75, 0.25


class Stock(nnx.Module):
    """A convolution, BatchNorm and dropout on 16×16 images, and one number for each image."""

    def __init__(self, rngs: nnx.Rngs, compute=None):
        self.norm = nnx.BatchNorm(1, momentum=MOMENTUM, rngs=rngs)
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(RATE, rngs=nnx.Rngs(dropout=5))
        self.head = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, images):
        hidden = jnp.tanh(self.conv(self.norm(images.reshape(-1, 16, 16, 1))))
        return self.head(self.dropout(hidden).mean((1, 2)))[:, 0]


def penalty_of(conv, images):
    slope = jax.grad(lambda images: jnp.tanh(conv(images)).sum())(images.reshape(-1, 16, 16, 1))
    return jnp.square(slope).sum((1, 2, 3))


def loss(model, rows):
    """Squared error, and the square of the gradient by the image of the convolution's output (reverse over reverse)."""
    error = jnp.square(model(rows["image"]) - rows["image"].mean(-1))
    penalty = penalty_of(model.conv, rows["image"])
    return Terms(error + 0.01 * penalty, jnp.ones(len(error)), {"penalty": penalty})


def set_up_stock(mesh, **changes):
    config = toy_config(run__mesh=mesh, **changes)
    task = make_toy(config, net=lambda rngs, compute: Stock(rngs), loss=loss)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    return set_up(task, configs.read(config), Lengths(100, 0, 100), devices)


def run(mesh) -> dict:
    """Losses, running statistics after each of three steps, and the count of dropout's stream."""
    setup = set_up_stock(mesh)
    state, found = setup.init(jax.random.key(0)), {"losses": [], "penalty": [], "mean": [], "var": [], "count": []}
    kernel = np.array(state.params["conv"]["kernel"])
    for step in range(3):
        batch = batch_of(range(ROWS * step, ROWS * (step + 1)))
        batch = {name: jax.device_put(each, setup.batch[name].sharding) for name, each in batch.items()}
        state, metrics = setup.step(state, batch, jax.random.key(1))
        found["losses"].append(float(metrics["loss"]))
        found["penalty"].append(float(metrics["penalty"]))
        for name in ("mean", "var"):
            found[name].append(float(state.variables["norm"][name][0]))
        found["count"].append(int(state.variables["dropout"]["rngs"]["count"]))
    return found | {"moved": float(np.abs(np.array(state.params["conv"]["kernel"]) - kernel).max())}


def runs() -> list[dict]:
    return [run({"data": 1, "fsdp": 1, "tensor": 1}), run({"data": 2, "fsdp": 2, "tensor": 1})]


@pytest.fixture(scope="module")
def found():
    return on_devices(4, runs)


def test_running_statistics_are_those_of_the_global_batch(found):
    """By NumPy; on four devices each has two of eight rows."""
    mean, var = 0.0, 1.0
    for step in range(3):
        pixels = batch_of(range(ROWS * step, ROWS * (step + 1)))["image"].astype(float)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * pixels.mean()
        var = MOMENTUM * var + (1 - MOMENTUM) * pixels.var()
        for each in found:
            assert each["mean"][step] == pytest.approx(mean, abs=1e-6)
            assert each["var"][step] == pytest.approx(var, rel=1e-5)


def test_running_statistics_are_pytorchs(found):
    """PyTorch's momentum is of the new value, and its running variance is unbiased."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make extras")
    norm = torch.nn.BatchNorm2d(1, momentum=1 - MOMENTUM)
    bias = 0.0
    for step in range(3):
        images = torch.from_numpy(batch_of(range(ROWS * step, ROWS * (step + 1)))["image"].reshape(-1, 1, 16, 16))
        norm(images)
        count = images.numel()
        bias = MOMENTUM * bias + (1 - MOMENTUM) * float(images.var(correction=0)) / (count - 1)
        assert found[0]["mean"][step] == pytest.approx(norm.running_mean.item(), abs=1e-6)
        assert found[0]["var"][step] == pytest.approx(norm.running_var.item() - bias, rel=1e-5)


def test_a_mesh_gives_what_one_device_gives(found):
    one, mesh = found
    np.testing.assert_allclose(mesh["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(mesh["penalty"], one["penalty"], rtol=1e-5)
    assert one["moved"] > 0.005


def test_the_stream_of_dropout_advances(found):
    assert [each["count"] for each in found] == [[1, 2, 3]] * 2


def test_a_gradient_inside_a_loss_has_a_gradient():
    """The penalty's gradient by the kernel against finite differences in float64 of its closed form."""
    setup = set_up_stock({"data": 1, "fsdp": 1, "tensor": 1})
    state, batch = setup.init(jax.random.key(0)), batch_of(range(ROWS))
    graph, params = nnx.split(nnx.merge(setup.abstract.graph, state.values()).conv)

    def penalty(params):
        return penalty_of(nnx.merge(graph, params), batch["image"]).sum()

    gradient = jax.grad(penalty)(params)["bias"].get_value()
    images = batch["image"].reshape(-1, 16, 16).astype(float)
    kernel, bias = (np.array(state.params["conv"][name], float) for name in ("kernel", "bias"))

    def by_hand(bias):
        """d tanh(conv(x)).sum() / dx is a full correlation of 1 − tanh² with the kernel."""
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        hidden = np.tanh(np.einsum("nyxij,ijc->nyxc", windows, kernel[:, :, 0]) + bias)
        inner = np.pad(1 - hidden**2, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(inner, (3, 3), (1, 2))
        slope = np.einsum("nyxcij,ijc->nyx", windows, kernel[::-1, ::-1, 0])
        return np.square(slope).sum()

    assert float(penalty(params)) == pytest.approx(by_hand(bias), rel=1e-5)
    for channel in range(2):
        step = np.eye(2)[channel] * 1e-5
        expected = (by_hand(bias + step) - by_hand(bias - step)) / 2e-5
        assert float(gradient[channel]) == pytest.approx(expected, rel=1e-4)


def make(config, known):
    def evaluations(model):
        def measure(values) -> Results:
            merged = nnx.merge(nnx.split(model)[0], values)
            merged.eval()
            return Results({"output": float(merged(batch_of(range(4))["image"]).sum())})

        return {"output": Evaluation(2, measure)}

    return make_toy(config, net=lambda rngs, compute: Stock(rngs), loss=loss, evaluations=evaluations)


def test_an_interrupted_run_is_bit_for_bit_that_of_one_that_was_not(tmp_path):
    """Running statistics and dropout's stream are saved and restored, and evaluated with."""
    config = toy_config(steps=4, run__checkpoint_every=2, run__keep_checkpoints=5, ema_decay=0.9)
    loop.train(config, tmp_path / "whole", make)
    loop.train(config, tmp_path / "parts", make)

    # As if it had been killed after step 2: what it wrote later is gone.
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 2]
    assert len(kept) == 3
    (tmp_path / "parts" / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    loop.train(config, tmp_path / "parts", make)
    folders = [tmp_path / name / "checkpoints" / "4" for name in ("whole", "parts")]
    for read in (checkpoints.read_params, checkpoints.read_variables):
        whole, again = (read(folder) for folder in folders)
        assert jax.tree.structure(whole) == jax.tree.structure(again)
        jax.tree.map(np.testing.assert_array_equal, whole, again)
    variables = checkpoints.read_variables(folders[1])
    assert int(variables["dropout"]["rngs"]["count"]) == 4
    assert float(variables["norm"]["mean"][0]) != 0
    numbers = [
        [
            {name: line[name] for name in ("step", "loss", "evaluation") if name in line}
            for line in map(json.loads, each)
        ]
        for each in ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts"))
    ]
    assert numbers[0] == numbers[1]
    assert sum("evaluation" in line for line in numbers[0]) == 2


def test_accumulated_parts_update_running_statistics_one_after_the_other():
    setup = set_up_stock({"data": 1, "fsdp": 1, "tensor": 1}, run__accumulation_steps=2)
    state, _ = setup.step(setup.init(jax.random.key(0)), batch_of(range(ROWS)), jax.random.key(1))
    mean, pixels = 0.0, batch_of(range(ROWS))["image"].astype(float)
    for part in range(2):
        mean = MOMENTUM * mean + (1 - MOMENTUM) * pixels[part::2].mean()
    assert float(state.variables["norm"]["mean"][0]) == pytest.approx(mean, abs=1e-6)
