"""The schedule, AdamW and the learning rate of each parameter, against closed forms and published numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.interop.names import CROCO, MAE, MIMIC, places
from mimic_jax.models.kinds import abstract
from mimic_jax.models.sizes import Sizes
from mimic_jax.models.vit import ViT
from mimic_jax.nn.compute import DEFAULT
from mimic_jax.nn.layers import linear
from mimic_jax.training import config as configs
from mimic_jax.training.optimizer import adamw, decays, learning_rate, multipliers_of
from mimic_jax.training.sections import AdamW
from tests.toy_task import toy_config


def test_schedule_is_linear_then_half_a_cosine():
    schedule = learning_rate(3e-4, warmup_steps=20, total_steps=100)
    peak = 3e-4
    for step in range(101):
        warm, cooling = peak * step / 20, peak * 0.5 * (1 + np.cos(np.pi * (step - 20) / 80))
        expected = warm if step < 20 else cooling
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-6 * peak)


SETTINGS = configs.read(toy_config()).optimizer


def settings(**changes) -> AdamW:
    return dataclasses.replace(SETTINGS, **changes)


def parameters_of(model: nnx.Module) -> dict:
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def test_schedule_ends_where_it_is_told():
    schedule = learning_rate(1.0, 5, 25, end=0.1)
    for step in range(5, 40):
        along = min((step - 5) / 20, 1)
        np.testing.assert_allclose(schedule(step), 0.1 + 0.9 * (1 + np.cos(np.pi * along)) / 2, rtol=1e-5)


def test_schedule_is_maes(parity):
    """Fractional epochs of the fixture as steps, hundreds of an epoch each. A parameter's scale is a multiplier."""
    fixture = np.load(parity / "downstream_layer_decay.npz")
    warmup, epochs, peak, least = fixture["in/mae_schedule/warmup_epochs_lr_minlr"]
    schedule = learning_rate(float(peak), round(100 * warmup), round(100 * epochs), float(least))
    found = np.array([float(schedule(100 * epoch)) for epoch in fixture["in/mae_schedule/epoch"]])
    expected = fixture["out/mae_schedule/lr_scale0.3_and_1"]
    np.testing.assert_allclose(found[:, None] * [0.3, 1], expected, atol=1e-6 * peak)


def test_schedule_is_multimaes_but_for_the_end_of_its_warm_up(parity):
    """MultiMAE's warm-up has both ends: its W steps rise by peak / (W − 1), and the cosine starts at the peak again.

    So where there is a warm-up the cosines are the same, step by step from W on, and the warm-ups differ by at most
    peak / W. Where there is none the schedules are the same.
    """
    fixture = np.load(parity / "downstream_layer_decay.npz")
    cases = {key.split("/")[1] for key in fixture if key.startswith("in/multimae_schedule")}
    assert len(cases) > 1
    for case in cases:
        peak, least, epochs, iterations, warmup_epochs, warmup_steps = fixture[
            f"in/{case}/base_final_epochs_iters_warmupepochs_warmupsteps"
        ]
        warmup = round(warmup_epochs * iterations)
        if warmup and warmup_steps > 0:
            warmup = int(warmup_steps)
        expected = fixture[f"out/{case}/lr"]
        total = round(epochs * iterations)
        assert len(expected) == total
        schedule = learning_rate(float(peak), warmup, total, float(least))
        found = np.array([float(schedule(step)) for step in range(total)])
        np.testing.assert_allclose(found[warmup:], expected[warmup:], atol=1e-6 * peak, err_msg=case)
        assert (expected[:warmup] >= found[:warmup]).all()
        if warmup:
            np.testing.assert_allclose(expected[:warmup] * (warmup - 1), found[:warmup] * warmup, atol=1e-5 * peak)


@pytest.mark.parametrize(
    ("file", "kind", "names", "others"),
    [
        ("croco_cosine", "croco", CROCO, {}),
        ("mimic_croco_cls", "croco", MIMIC, {"class_token": True}),
        ("mae", "mae", MAE, {"class_token": True}),
    ],
)
def test_decay_spares_what_is_one_dimensional_in_the_published_model(parity, file, kind, names, others):
    fixture = np.load(parity / f"{file}.npz")
    fields = ("embed_dim", "depth", "num_heads")
    sizes = Sizes(
        *(int(fixture[f"in/{part}_{field}"]) for part in ("enc", "dec") for field in fields),
        patch_size=int(fixture["in/patch_size"]),
        positions="cosine",
        **others,
    )
    model = abstract(kind, sizes)
    found, named = decays(parameters_of(model)), places(model, names)
    assert {place.path for place in named.values()} == set(found)
    for name, place in named.items():
        assert found[place.path] == (fixture[f"param/{name}"].ndim > 1), name


class Encoded(nnx.Module):
    """An encoder, and a head of stock layers."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        self.encoder = ViT(sizes, rngs=rngs)
        self.head = nnx.Conv(sizes.encoder_width, 3, (3, 3), rngs=rngs)


def layers_of(depth: int) -> tuple[tuple[str, int], ...]:
    return (
        ("encoder/(patch_embed|positions|class_token).*", 0),
        ("encoder/blocks/.*", 1),
        ("encoder/norm/.*", depth),
        (".*", depth + 1),
    )


def test_layer_decay_and_weight_decay_are_crocos(parity):
    """Each parameter of the published single-view model with a DPT head, by name."""
    fixture = np.load(parity / "downstream_layer_decay.npz")
    depth, decay = int(fixture["in/depth"]), float(fixture["in/decay_multimae_vitpose_croco"])
    group = "out/croco_monocular"
    published = {
        str(name): (scale, weight_decay)
        for name, scale, weight_decay in zip(
            *(fixture[f"{group}/{each}"] for each in ("name", "lr_scale", "weight_decay")), strict=True
        )
    }
    sizes = Sizes(16, depth, 2, decoder_depth=0, positions="rope100")
    model = nnx.eval_shape(lambda: Encoded(sizes, nnx.Rngs(0)))
    parameters = parameters_of(model)
    factors = multipliers_of(parameters, settings(layer_decay=decay), layers_of(depth))
    decayed = decays(parameters)
    named = places(model, CROCO)
    assert {name for name in published if not name.startswith("head.")} == set(named)
    for name, place in named.items():
        scale, weight_decay = published[name]
        factor = factors[place.path]
        if place.layer is not None:
            assert factor.ndim == parameters[place.path].get_value().ndim
            factor = factor.ravel()[place.layer]
        assert factor == pytest.approx(scale, rel=1e-6), name
        assert decayed[place.path] == (weight_decay > 0), name
    for name, (scale, weight_decay) in published.items():
        if name.startswith("head."):
            path = ("head", "kernel" if name.endswith("weight") else "bias")
            assert (factors[path], decayed[path]) == (scale, weight_decay > 0), name


def test_multipliers_are_of_the_first_pattern_that_matches_the_whole_path():
    parameters = parameters_of(nnx.eval_shape(lambda: Encoded(Sizes(16, 2, 2), nnx.Rngs(0))))
    patterns = (("encoder/blocks/.*/bias", 0.5), ("encoder/.*", 0.0), ("hea", 9.0), ("head/kernel", 3.0))
    with pytest.raises(InputError, match=r"^config\.optimizer\.multipliers: 'hea' matches no parameter; .*encoder/"):
        multipliers_of(parameters, settings(multipliers=patterns), ())
    factors = multipliers_of(parameters, settings(multipliers=patterns[:2] + patterns[3:]), ())
    for path, factor in factors.items():
        blocks = path[:2] == ("encoder", "blocks")
        expected = 0.5 if blocks and path[-1] == "bias" else 0 if path[0] == "encoder" else {"kernel": 3, "bias": 1}
        assert factor == (expected[path[-1]] if isinstance(expected, dict) else expected), path
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        multipliers_of(parameters, settings(multipliers=(("(", 1.0),)), ())
    with pytest.raises(InputError, match=r"^config\.optimizer\.layer_decay=0\.5: .* have no layers$"):
        multipliers_of(parameters, settings(layer_decay=0.5), ())


def test_weight_decay_can_leave_out_more_by_pattern():
    parameters = parameters_of(nnx.eval_shape(lambda: Encoded(Sizes(16, 2, 2), nnx.Rngs(0))))
    every, fewer = decays(parameters), decays(parameters, ("head/.*", "encoder/blocks/mlp/.*"))
    changed = {path for path in every if every[path] != fewer[path]}
    assert changed == {
        ("head", "kernel"),
        ("encoder", "blocks", "mlp", "expand", "kernel"),
        ("encoder", "blocks", "mlp", "project", "kernel"),
    }


def test_a_bias_that_is_split_into_heads_is_one_dimensional():
    model = nnx.eval_shape(
        lambda: linear(8, (2, 4), axes_in=("embed",), axes_out=("heads", "head_dim"), rngs=nnx.Rngs(0), compute=DEFAULT)
    )
    assert decays(parameters_of(model)) == {("kernel",): True, ("bias",): False}


def test_a_multiplier_multiplies_the_whole_update():
    """Weight decay too, as the learning rate does; along the first axis for a stack of layers."""
    rng = np.random.default_rng(0)
    params = {"stack": jnp.array(rng.normal(size=(3, 4, 2)), jnp.float32), "one": jnp.array([[1.0, -2.0]])}
    gradients = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape), jnp.float32), params)
    factors = {"stack": np.array([0.25, 0.5, 1], np.float32).reshape(3, 1, 1), "one": 4.0}
    decayed = dict.fromkeys(params, True)
    plain = adamw(lambda _: 0.01, SETTINGS, decayed, dict.fromkeys(params, 1.0))
    scaled = adamw(lambda _: 0.01, SETTINGS, decayed, factors)
    one, other = plain.init(params), scaled.init(params)
    for _ in range(3):
        expected, one = plain.update(gradients, one, params)
        found, other = scaled.update(gradients, other, params)
        for name in params:
            np.testing.assert_allclose(found[name], expected[name] * factors[name], rtol=1e-6)


def test_an_update_is_adamw_by_hand():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    gradients = {"kernel": jnp.array([[0.5, 0.1]]), "bias": jnp.array([-0.2])}
    given = settings(b1=0.9, b2=0.95, weight_decay=0.05)
    optimizer = adamw(lambda _: 0.01, given, {"kernel": True, "bias": False}, dict.fromkeys(params, 1.0))
    state = optimizer.init(params)
    expected = jax.tree.map(np.float64, params)
    mean, square = (dict.fromkeys(params, 0.0) for _ in range(2))
    for step in (1, 2, 3):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in gradients.items():
            gradient = np.float64(gradient)
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.95 * square[name] + 0.05 * gradient**2
            adam = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.95**step)) + 1e-8)
            decay = 0.05 * expected[name] if name == "kernel" else 0
            expected[name] = expected[name] - 0.01 * (adam + decay)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def test_each_layer_of_a_stacked_scalar_has_its_own_rate():
    stacked = {("blocks", "scale"): nnx.Param(jnp.ones(3), axes=("layers",))}
    found = multipliers_of(stacked, settings(layer_decay=0.5), ((r"blocks/.*", 1),))
    np.testing.assert_allclose(found["blocks", "scale"], [0.25, 0.5, 1.0])


def test_a_pattern_that_leaves_nothing_out_of_decay_is_refused():
    with pytest.raises(InputError, match=r"config\.optimizer\.no_decay: 'absent' matches no parameter"):
        decays({("kernel",): nnx.Param(jnp.ones((2, 2)))}, ("absent",))
