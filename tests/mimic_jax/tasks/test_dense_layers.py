"""Learning rates by layer and weight decay of a dense model are those of CroCo's program."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.interop import dense_names
from mimic_jax.models.sizes import Sizes
from mimic_jax.nn.compute import DEFAULT
from mimic_jax.nn.rngs import make_rngs
from mimic_jax.tasks import make_task
from mimic_jax.training import config as configs
from mimic_jax.training.optimizer import decays, multipliers_of
from mimic_jax.training.setup import set_up
from tests.labelled import small_config


def model_and_task(depth, **changes):
    task = make_task(small_config("depth", depth__head="dpt", model__encoder_depth=depth, **changes))
    return nnx.eval_shape(lambda: task.model(make_rngs(0), DEFAULT)), task


def by_published_name(model, values):
    """A number for each parameter, or for each layer of a stack, under the names of CroCo's program."""
    params = nnx.state(model, nnx.Param)
    filled = {
        path: np.broadcast_to(np.asarray(values[path], np.float32), parameter.get_value().shape)
        for path, parameter in nnx.to_flat_state(params)
    }
    nnx.replace_by_pure_dict(params, nnx.traversals.unflatten_mapping(filled))
    named = dense_names.to_published(nnx.merge(nnx.split(model)[0], params), dense_names.CROCO)
    for name, tensor in named.items():
        assert tensor.min() == tensor.max(), name
    return {name: float(tensor.flat[0]) for name, tensor in named.items()}


def test_every_parameter_has_the_published_rate_and_decay(parity):
    fixture = np.load(parity / "downstream_layer_decay.npz")
    given = {
        key: dict(zip(fixture["out/croco_monocular/name"].tolist(), fixture[f"out/croco_monocular/{key}"], strict=True))
        for key in ("lr_scale", "weight_decay", "layer_id")
    }
    decay = float(fixture["in/decay_multimae_vitpose_croco"])
    model, task = model_and_task(int(fixture["in/depth"]), optimizer__layer_decay=decay)
    settings = configs.read(small_config("depth", optimizer__layer_decay=decay)).optimizer
    parameters = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    rates = by_published_name(model, multipliers_of(parameters, settings, task.layers))
    decayed = by_published_name(model, decays(parameters))
    assert len(rates) > 150
    assert rates.keys() <= given["lr_scale"].keys()
    # What we lack: the unit that the head never runs, and second names of its tensors.
    second = ("head.dpt.act_postprocess.", "head.dpt.scratch.layer_rn.", "head.dpt.scratch.refinenet4.resConfUnit1.")
    assert all(name.startswith(second) for name in given["lr_scale"].keys() - rates.keys())
    for name, rate in rates.items():
        np.testing.assert_allclose(rate, given["lr_scale"][name], rtol=1e-6, err_msg=name)
        assert bool(decayed[name]) == (given["weight_decay"][name] > 0), name
    assert len({round(rate, 9) for rate in rates.values()}) == int(fixture["in/depth"]) + 2


def test_what_comes_before_the_blocks_is_of_the_lowest_layer():
    model, task = model_and_task(2, model__class_token=True, model__positions="learned")
    settings = configs.read(small_config("depth", optimizer__layer_decay=0.5)).optimizer
    parameters = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    rates = multipliers_of(parameters, settings, task.layers)
    lowest = {path: rate for path, rate in rates.items() if path[1] in ("class_token", "positions", "patch_embed")}
    assert len(lowest) == 4
    assert set(lowest.values()) == {0.5**3}


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_sizes_come_from_the_weights_where_the_config_leaves_them_open(task):
    known = Sizes(24, 3, 2, patch_size=16, positions="cosine", class_token=True, position_grid=(4, 4))
    names = [field.name for field in dataclasses.fields(Sizes) if field.name.startswith("encoder_")]
    config = small_config(task, model__patch_size=None, **{f"model__{name}": None for name in names})
    found = make_task(config, known).backbone
    assert found.kind == "vit"
    for name in (*names, "patch_size", "positions", "class_token", "position_grid"):
        assert getattr(found.sizes, name) == getattr(known, name), name
    assert found.seen.crop == (32, 32)
    assert make_task(small_config(task), known).backbone.sizes.encoder_width == 16


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_what_a_multiplier_freezes_is_not_trained_at_all(layer_decay):
    """The optimizer keeps nothing for it, whether or not layers have rates of their own."""
    frozen = {"optimizer__multipliers": (("encoder/.*", 0.0),), "optimizer__layer_decay": layer_decay}
    config = small_config("depth", **frozen)
    setup = set_up(make_task(config), configs.read(config), configs.Lengths(10, 1, 10), jax.devices()[:1])
    assert {path[0] for path in setup.trained} == {"head"}
    assert {path[0] for path in setup.abstract.params} == {"encoder", "head"}
    kept = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(setup.shapes.opt_state)}
    assert any("head" in path for path in kept)
    assert not any("encoder" in path for path in kept)
    config.optimizer.multipliers = ((".*", 0.0),)
    with pytest.raises(InputError, match="freezes every parameter"):
        set_up(make_task(config), configs.read(config), configs.Lengths(10, 1, 10), jax.devices()[:1])
