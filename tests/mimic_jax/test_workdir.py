"""What a workdir says of its model, as of today and of before it had a model.json; without JAX."""

import json
import re
import subprocess
import sys

import pytest

from mimic_jax.command import InputError
from mimic_jax.models.description import KINDS, Description, Seen
from mimic_jax.models.kinds import MODELS
from mimic_jax.models.sizes import Sizes
from mimic_jax.workdir import read_model, write_model

# As workdirs had it before they had a model.json.
CONFIG = {
    "objective": "croco",
    "model": {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "patch_size": 8, "positions": "cosine"},
    "data": {"size": 68, "crop": [32, 64]},
}
SIZES = Sizes(16, 1, 2, patch_size=8, positions="cosine", position_grid=(4, 8))


@pytest.fixture
def old(tmp_path):
    """Writes a config with changes of sections, and gives the workdir."""

    def write(**changes):
        config = CONFIG | {name: CONFIG[name] | value for name, value in changes.items()}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def test_a_model_is_read_as_it_was_written(tmp_path):
    seen = Seen((70, 80), (32, 64))
    write_model(tmp_path, Description("vit", SIZES, seen))
    found = read_model(tmp_path)
    assert (found.kind, found.sizes, found.seen) == ("vit", SIZES, seen)
    assert json.loads((tmp_path / "model.json").read_text())["seen"] == {"size": [70, 80], "crop": [32, 64]}


def test_an_old_workdir_has_its_model_in_its_config(old):
    """Absolute position embeddings belong to the crop's grid, or to the grid in the config; rotary ones to none."""
    found = read_model(old())
    assert (found.kind, found.sizes, found.seen) == ("croco", SIZES, Seen((68, 68), (32, 64)))
    assert read_model(old(model={"position_grid": [2, 3]})).sizes.position_grid == (2, 3)
    assert read_model(old(model={"positions": "rope100"})).sizes.position_grid is None
    assert read_model(old(model={"patch_size": 16}, data={"crop": 48})).sizes.position_grid == (3, 3)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[]",
        "{}",
        '{"kind": "resnet", "sizes": {}}',
        '{"kind": "vit", "sizes": {"encoder_width": 16}}',
        '{"kind": "vit", "sizes": {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 3}}',
        '{"kind": "vit", "sizes": {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2}, "seen": {"size": 1}}',
    ],
)
def test_a_damaged_description_is_named(old, damaged):
    workdir = old()
    (workdir / "model.json").write_text(damaged)
    with pytest.raises(InputError, match=re.escape(f"{workdir / 'model.json'}: is damaged (")):
        read_model(workdir)


@pytest.mark.parametrize("config", ["{}", '{"objective": "depth", "model": {}, "data": {"size": 8, "crop": 8}}'])
def test_a_config_that_describes_no_model_is_named(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"has no model\.json, and config\.json does not describe a backbone"):
        read_model(tmp_path)


def test_kinds_are_those_of_the_models():
    assert set(KINDS) == set(MODELS)


def test_jax_is_not_imported():
    code = "import sys, mimic_jax.workdir, mimic_jax.metrics_file; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
