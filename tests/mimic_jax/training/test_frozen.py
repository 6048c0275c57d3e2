"""Frozen parameters: no moments, no backward pass, not a bit moved."""

import jax
import numpy as np
import pytest
from flax import nnx

from mimic_jax.command import InputError
from mimic_jax.planning.counts import count
from mimic_jax.planning.plan import make_plan
from mimic_jax.training import config as configs
from mimic_jax.training.config import Lengths
from mimic_jax.training.setup import set_up
from tests.mimic_jax.planning.small import parts, small
from tests.toy_task import PIXELS, ROWS, WIDTH, batch_of, make_toy, toy_config

FROZEN = (("encoder/.*", 0.0),)
PRODUCT = 2 * ROWS * PIXELS * WIDTH


def set_up_toy(**changes):
    config = toy_config(**changes)
    return set_up(make_toy(config), configs.read(config), Lengths(100, 0, 100), jax.devices()[:1])


def flops(setup) -> int:
    lowered = setup.step.lower(setup.shapes, setup.batch, jax.eval_shape(lambda: jax.random.key(0)))
    return sum(count(lowered.compile().as_text(), {"data": 1}).flops.values())


def arrays(tree) -> dict:
    flat = nnx.traversals.flatten_mapping(tree)
    return {path: np.array(leaf, copy=True) for path, leaf in flat.items()}


def test_frozen_parameters_stay_bit_for_bit_and_have_no_moments():
    setup = set_up_toy(optimizer__multipliers=FROZEN, optimizer__weight_decay=0.5, ema_decay=0.5)
    state = setup.init(jax.random.key(0))
    before = arrays(state.params)
    moments = jax.tree.leaves_with_path(state.opt_state)
    assert not [path for path, _ in moments if "encoder" in jax.tree_util.keystr(path)]
    assert sorted(leaf.shape for _, leaf in moments if leaf.ndim) == [(WIDTH, PIXELS)] * 2 + [(PIXELS,)] * 2
    for step in range(3):
        state, metrics = setup.step(state, batch_of(range(step, step + ROWS)), jax.random.key(1))
    assert metrics["gradient_norm"] > 0
    after, ema = arrays(state.params), arrays(state.ema_params)
    assert before.keys() == after.keys()
    for path in before:
        same = np.array_equal(before[path].view(np.uint32), after[path].view(np.uint32))
        assert same == (path[0] == "encoder"), path
        if path[0] == "encoder":
            np.testing.assert_allclose(ema[path], before[path], rtol=1e-6)


def test_frozen_layers_have_no_backward_pass():
    """Products: two forward; gradients of both kernels and of what is between. Without the last two, three."""
    assert flops(set_up_toy()) == 5 * PRODUCT
    assert flops(set_up_toy(optimizer__multipliers=FROZEN)) == 3 * PRODUCT


@pytest.mark.slow
def test_a_frozen_encoder_of_blocks_is_only_computed_forward():
    full, frozen = (
        make_plan(
            *parts(
                small(
                    "mae",
                    steps=3,
                    optimizer__warmup_steps=1,
                    optimizer__total_steps=9,
                    optimizer__multipliers=multipliers,
                )
            ),
            [device],
        )
        for device in jax.devices()[:1]
        for multipliers in ((), FROZEN)
    )
    task, _ = parts(small("mae"))
    backward = 2 / 3 * task.flops["encoder"] + 1 / 2 * task.flops["patch embedding"]
    saved = sum(full.counts.flops.values()) - sum(frozen.counts.flops.values())
    assert saved == pytest.approx(backward, rel=0.1)
    assert frozen.memory.optimizer < full.memory.optimizer / 1.5


def test_the_update_of_a_parameter_is_its_multiplier_times_the_update_without():
    factors = (("encoder/kernel", 0.25), ("encoder/.*", 3.0), ("head/bias", 0.5))
    moved = []
    for multipliers in ((), factors):
        setup = set_up_toy(optimizer__multipliers=multipliers, optimizer__learning_rate=0.5)
        state = setup.init(jax.random.key(0))
        before = arrays(state.params)
        state, _ = setup.step(state, batch_of(range(ROWS)), jax.random.key(1))
        moved.append({path: leaf - before[path] for path, leaf in arrays(state.params).items()})
    plain, scaled = moved
    expected = {("encoder", "kernel"): 0.25, ("encoder", "bias"): 3.0, ("head", "bias"): 0.5, ("head", "kernel"): 1.0}
    assert plain.keys() == expected.keys()
    for path, factor in expected.items():
        assert np.abs(plain[path]).min() > 0.1, "Adam's first step is the learning rate, whatever the gradient"
        np.testing.assert_allclose(scaled[path], factor * plain[path], rtol=1e-5, err_msg=str(path))


def test_something_must_be_trained():
    with pytest.raises(InputError, match=r"^config\.optimizer\.multipliers freezes every parameter"):
        set_up_toy(optimizer__multipliers=((".*", 0.0),))
