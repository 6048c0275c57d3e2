"""The sections of a config: lengths in steps, and what cannot be used is refused by its field."""

import functools
import re

import pytest
from ml_collections import ConfigDict

from configs import croco_tiny, croco_v1_vitb, mimic_mae_vitb
from mimic_jax.command import InputError
from mimic_jax.training import config as configs
from mimic_jax.training.config import Lengths, fixed_fields, free_fields, lengths_of
from tests.mimic_jax.planning.small import parts
from tests.toy_task import toy_config


def changed(module, **changes) -> ConfigDict:
    config = module.get_config()
    config.data.train = "unopened"
    with config.unlocked(), config.ignore_type():
        for name, value in changes.items():
            *sections, field = name.replace("__", ".").split(".")
            functools.reduce(getattr, sections, config)[field] = value
    return config


def test_lengths_come_from_steps_or_epochs():
    made = croco_v1_vitb.get_config()
    # 400, 40 and 800 epochs of 1000 pairs, 256 a step, rounded
    assert lengths_of(configs.read(made), 1000) == Lengths(1562, 156, 3125)
    made.steps = 7
    assert lengths_of(configs.read(made), 1000) == Lengths(7, 156, 3125)
    tiny = croco_tiny.get_config()
    assert lengths_of(configs.read(tiny), 1000) == Lengths(400, 30, 400)
    made.steps, made.epochs = None, None
    with pytest.raises(InputError, match=r"^config\.steps is not set: give it, or config\.epochs$"):
        lengths_of(configs.read(made), 1000)
    made.epochs = 0.01
    with pytest.raises(InputError, match=r"^config\.steps=0 must be at least 1$"):
        lengths_of(configs.read(made), 1000)


def test_lengths_must_go_together():
    with pytest.raises(InputError, match=r"^config\.optimizer\.warmup_steps=9 must be below .*total_steps=9"):
        lengths_of(configs.read(toy_config(optimizer__warmup_steps=9, optimizer__total_steps=9)), 100)
    made = toy_config(optimizer__warmup_steps=None)
    with pytest.raises(InputError, match=r"^config\.optimizer\.warmup_steps is not set: .*warmup_epochs$"):
        lengths_of(configs.read(made), 100)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer__b2", 2.0, r"config\.optimizer\.b2=2\.0 must be at least 0, below 1"),
        ("optimizer__base_learning_rate", -1.0, r"config\.optimizer\.base_learning_rate=-1\.0 must be at least 0"),
        ("optimizer__weight_decay", "x", r"config\.optimizer\.weight_decay='x' must be a number"),
        ("optimizer__weight_decay", float("nan"), r"config\.optimizer\.weight_decay=nan must be a number"),
        ("optimizer__multipliers", ("head/.*",), r"config\.optimizer\.multipliers=\('head/\.\*',\) must be .*"),
        ("optimizer__multipliers", (("a", -1.0),), r"config\.optimizer\.multipliers=.* must be at least 0"),
        ("optimizer__momentum", 0.9, r"config\.optimizer\.momentum is unknown"),
        ("seed", 1.5, r"config\.seed=1\.5 must be an integer"),
        ("seed", -1, r"config\.seed=-1 must be at least 0, at most 4,294,967,295"),
        ("batch_size", 4.0, r"config\.batch_size=4\.0 must be an integer"),
        ("batch_size", 0, r"config\.batch_size=0 must be at least 1"),
        ("batch_size", True, r"config\.batch_size=True must be an integer"),
        ("compute_dtype", "float64", r"config\.compute_dtype='float64' must be 'float32' or 'bfloat16'"),
        ("ema_decay", 1.0, r"config\.ema_decay=1\.0 must be at least 0, below 1"),
        ("run__log_every", True, r"config\.run\.log_every=True must be an integer"),
        ("run__log_every", 0, r"config\.run\.log_every=0 must be at least 1"),
        ("run__keep_best", 1, r"config\.run\.keep_best=1 must be True or False"),
        ("run__remat", "blocks", r"config\.run\.remat='blocks' must be 'none' or 'dots' or 'full'"),
        ("run__mesh", {"data": "all"}, r"config\.run\.mesh=.*'all'.* must be a section of an integer"),
        ("run__keep_every", 30, r"config\.run: keep_every=30 must be a multiple of checkpoint_every=50.*"),
        ("run", 3, r"config\.run=3 must be a section with the fields log_every, .*"),
        ("run__attention", "cudnn", r"config\.run\.attention='cudnn' computes in 16 bits: .*"),
        ("data.crop", None, r"config\.data\.crop=None must be a side in pixels, or \(height, width\)"),
        ("data.crop", (32, 64, 3), r"config\.data\.crop=\(32, 64, 3\) must be a side in pixels, or \(height, width\)"),
        ("data.jitter", 2.0, r"config\.data\.jitter=2\.0 must be at least 0, at most 1"),
        ("data.area", (0.0, 1.0), r"config\.data\.area=\(0\.0, 1\.0\) must be above 0, at most 1"),
        ("data.views", "both", r"config\.data\.views='both': a model of kind 'croco' needs 'pair'"),
        ("model.predicts", False, r"config\.model\.predicts=False must be True for this task"),
        ("model.decoder_depth", 0, r"config\.model\.decoder_depth=0 must be at least 1"),
        ("model.width", 3, r"config\.model\.width is unknown"),
        ("model.encoder_heads", 3, r"config\.model: encoder_width 128 is not a multiple of 4 · encoder_heads \(3\)"),
        ("evals.completion.examples", 0, r"config\.evals\.completion\.examples=0 must be at least 1"),
        ("evals.depth", 3, r"config\.evals\.depth is unknown"),
        ("task", "completing", r"config\.task='completing' must be .*'completion'.*"),
    ],
)
def test_a_mistake_names_its_field_in_one_line(name, value, message):
    made = changed(croco_tiny, **{name: value})
    with pytest.raises(InputError) as raised:
        parts(made)
    assert "\n" not in str(raised.value)
    assert re.fullmatch(message, str(raised.value)), str(raised.value)


def test_every_mistake_of_a_section_is_named():
    with pytest.raises(InputError) as raised:
        configs.read(toy_config(optimizer__b1=-1.0, optimizer__b2="x", optimizer__decay=3))
    for field in ("b1=-1.0", "b2='x'", "decay is unknown"):
        assert f"config.optimizer.{field}" in str(raised.value)


@pytest.mark.parametrize("section", ["model", "data", "evals", "optimizer", "run"])
def test_a_section_that_is_missing_is_named(section):
    made = toy_config()
    with made.unlocked():
        del made[section]
    with pytest.raises(InputError, match=rf"^--config: the section config\.{section} is missing$"):
        configs.read(made)


def test_a_field_that_is_missing_is_named():
    made = toy_config()
    with made.unlocked():
        del made.run["threads"]
    with pytest.raises(InputError, match=r"^config\.run\.threads is missing$"):
        configs.read(made)


def test_a_learning_rate_is_needed():
    with pytest.raises(InputError, match=r"^config\.optimizer: learning_rate or base_learning_rate must be set$"):
        configs.read(toy_config(optimizer__learning_rate=None))
    absolute = configs.read(toy_config(optimizer__learning_rate=0.5, optimizer__base_learning_rate=1.0)).optimizer
    scaled = configs.read(toy_config(optimizer__learning_rate=None, optimizer__base_learning_rate=1.0)).optimizer
    assert (absolute.peak(512), scaled.peak(512)) == (0.5, 2.0)


def test_both_views_of_a_pair_need_an_even_batch():
    with pytest.raises(InputError, match=r"^config\.batch_size=5 must be even"):
        parts(changed(mimic_mae_vitb, batch_size=5))


def test_fields_are_fixed_by_their_whole_names():
    """`running` begins like the section `run`, and data.trained like the free field data.train."""
    config = {
        "seed": 0,
        "running": 1,
        "evals_of": {"a": 1},
        "run": {"log_every": 1},
        "evals": {"depth": {"every": 3}},
        "model": {"kind": "mae"},
        "data": {"train": "a", "trained": "b", "validation": "", "validation_size": 3, "size": 8},
    }
    fixed = {"seed": 0, "running": 1, "evals_of.a": 1, "data.trained": "b", "data.validation_size": 3, "data.size": 8}
    assert fixed_fields(config) == fixed
    assert free_fields(config) == {
        "run.log_every": 1,
        "evals.depth.every": 3,
        "data.train": "a",
        "data.validation": "",
    }
