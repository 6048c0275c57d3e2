"""Old names of config fields: every field of an old config has a place in today's."""

from ml_collections import ConfigDict

from configs import croco_tiny
from mimic_jax.renamed import FIELDS, flatten, upgraded, upgraded_fields
from mimic_jax.tasks import make_task
from mimic_jax.training import config as configs
from tests.mimic_jax.training.test_old_workdirs import old_config


def test_an_old_config_has_every_field_of_today_that_decides_what_is_learned():
    found = upgraded(old_config("somewhere"))
    today = croco_tiny.get_config().to_dict()
    assert configs.fixed_fields(found).keys() == configs.fixed_fields(today).keys()
    assert flatten(found).keys() <= flatten(today).keys()
    task = make_task(ConfigDict(found))
    assert (task.backbone.kind, task.backbone.sizes.encoder_width) == ("croco", 16)


def test_values_go_where_the_table_says():
    old = old_config("somewhere")
    found, before = flatten(upgraded(old)), flatten(old)
    for name, value in before.items():
        section = name.partition(".")[0] + "."
        new = FIELDS.get(name) or (FIELDS[section] + name.partition(".")[2] if section in FIELDS else name)
        assert found[new] == ("full" if name == "remat" else value), name
    assert found["evals.correspondence.every"] == old["eval"]["every"]
    assert found["evals.correspondence.examples"] == old["eval"]["pairs"]
    assert (found["task"], found["residual_dtype"], found["optimizer.layer_decay"]) == ("completion", "float32", 1.0)


def test_a_config_of_today_stays_as_it_is():
    today = croco_tiny.get_config().to_dict()
    assert upgraded(today) is today
    assert upgraded_fields(flatten(today)) == flatten(today)


def test_names_are_whole():
    """A field that only begins like an old one is another field."""
    assert upgraded_fields({"accumulated": 1, "mesh_of": 2, "eval.pairs_of": 3}) == {
        "accumulated": 1,
        "mesh_of": 2,
        "eval.pairs_of": 3,
    }
