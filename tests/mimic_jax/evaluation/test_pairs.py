"""Measures of a model on a mesh, during sharded training and with more devices than rows, against one device."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mimic_jax.data.mixture import all_examples, open_mixture
from mimic_jax.evaluation.mean import mean_over
from mimic_jax.evaluation.pairs import evaluate, make_measures
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.planning.counts import count
from mimic_jax.training.config import Lengths
from mimic_jax.training.mesh import make_layout
from mimic_jax.training.setup import set_up
from tests.datasets import make_pair, write_dataset
from tests.devices import on_devices
from tests.mimic_jax.planning.small import parts, small
from tests.random_weights import random_params
from tests.toy_task import PIXELS, batch_of, source

SEEN = {"size": (36, 36), "crop": (32, 32)}
FEW = [4, 9, 17]
PRODUCTS = 384
SIZES = Sizes(16, 1, 2, 16, 1, 2, patch_size=8, mask_ratio=0.5)


def numbers_of(measures, values) -> dict[str, float]:
    return {name: value for measure in measures.values() for name, value in measure(values).items()}


def on_a_mesh(folder: str) -> list[dict[str, float]]:
    """Numbers of a sharded state twice, the second time without tracing, and of the same values on one device."""
    config = small(batch_size=4, run__mesh={"data": 2, "fsdp": 1, "tensor": 2})
    config.model.update(encoder_width=16, encoder_depth=1, decoder_width=16, decoder_depth=1, mask_ratio=0.5)
    setup = set_up(*parts(config), Lengths(10, 0, 10))
    state = setup.init(jax.random.key(0))
    assert len(state.params["decoder"]["mlp"]["expand"]["kernel"].sharding.device_set) == 4
    examples = all_examples(open_mixture(folder, "data"))
    measures, _ = make_measures(setup.model, examples, **SEEN, batch=2, layout=setup.layout)
    sharded = numbers_of(measures, state.values())
    with jax.no_tracing():  # all is compiled already
        again = numbers_of(measures, state.values())
    alone = set_up(*parts(config.copy_and_resolve_references()), Lengths(10, 0, 10)).model
    alone = nnx.merge(nnx.split(build("croco", alone.sizes, nnx.Rngs(0)))[0], jax.device_get(state.params))
    return [sharded, again, evaluate(alone, examples, **SEEN)[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(folder, [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(5)])
    return folder


@pytest.mark.slow
def test_sharded_parameters_give_what_whole_ones_give(folder):
    sharded, again, whole = on_devices(4, on_a_mesh, str(folder))
    assert sharded == again
    assert set(sharded) >= {"error", "ratio", "psnr", "correspondence_within_1", "chance_within_2", "pairs"}
    for name, value in whole.items():
        # A tie between two patches may go either way: one of some forty.
        assert abs(sharded[name] - value) < (0.05 if "within" in name or "layer" in name else 1e-4), name


def test_numbers_do_not_depend_on_the_batch(folder):
    """Masks included, which each example has of its own."""
    examples = all_examples(open_mixture(str(folder), "data"))
    model = nnx.merge(
        nnx.split(build("croco", SIZES, nnx.Rngs(0)))[0], jax.tree.map(jnp.asarray, random_params("croco", SIZES))
    )
    one, *others = (evaluate(model, examples, **SEEN, batch=batch)[0] for batch in (1, 3, 64))
    assert set(one) >= {"error", "error_wrong_view", "error_black_view", "psnr", "correspondence_within_1", "pairs"}
    for other in others:
        assert other.keys() == one.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_another_seed_draws_other_masks(folder):
    examples = all_examples(open_mixture(str(folder), "data"))
    model = nnx.merge(
        nnx.split(build("croco", SIZES, nnx.Rngs(0)))[0], jax.tree.map(jnp.asarray, random_params("croco", SIZES))
    )
    first, second = (evaluate(model, examples, **SEEN, seed=seed)[0] for seed in (0, 1))
    assert first["error"] != second["error"]
    assert first["features_within_1"] == second["features_within_1"]


class Scale(nnx.Module):
    """A model with one number."""

    def __init__(self):
        self.scale = nnx.Param(jnp.full((), 2.0))


def measure(model: nnx.Module, batch: dict) -> dict:
    """The scaled mean of each image, weighted by its valid pixels, through a product that shows in the program."""
    product = batch["image"] @ jnp.ones((PIXELS, PRODUCTS))
    return {"mean": (model.scale * product.mean(-1), batch["valid"].sum(-1))}


def on_more_devices_than_rows() -> list[dict[str, float]]:
    """The mean over three rows on eight devices, and on one."""
    layout = make_layout({"data": 8}, {"batch": "data"}, 8)
    model, few = Scale(), {"indices": FEW}
    values = nnx.to_pure_dict(nnx.state(model))
    return [mean_over(model, source(), measure, **few, layout=each)(values) for each in (layout, None)]


def test_more_devices_than_rows(tmp_path):
    """Each device computes one row, and the rows that fill up do not count."""
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*sums.*"
    many, one = on_devices(8, on_more_devices_than_rows, flags=dump)
    batch = batch_of(FEW)
    weight = batch["valid"].sum(-1)
    assert weight.all()
    expected = 2 * (batch["image"].sum(-1, dtype=float) * weight).sum() / weight.sum()
    assert one["mean"] == pytest.approx(expected, rel=1e-4)
    assert many["mean"] == pytest.approx(one["mean"], rel=1e-6)
    programs = [path.read_text() for path in tmp_path.glob("*after_optimizations.txt")]
    flops = sorted(sum(count(text, {"data": 8}).flops.values()) for text in programs)
    assert flops == [2 * PIXELS * PRODUCTS, 2 * PIXELS * PRODUCTS * len(FEW)]
