"""What configs describe: the published recipes, lengths in epochs, and what cannot be."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax.command import InputError
from mimic_jax.models.kinds import abstract
from mimic_jax.training.experiment import check, sizes_of, total_steps
from mimic_jax.training.optimizer import learning_rate

CONFIGS = Path(__file__).parents[3] / "configs"

# The recipes as the papers and their released code have them: objective, encoder (width, depth, heads), decoder,
# positions, class token, mask ratio, epochs, schedule, warm-up, batch, size, crop.
PUBLISHED = {
    "croco_v1_vitb": ("croco", (768, 12, 12), (512, 8, 16), "cosine", False, 0.9, 400, 800, 40, 256, 256, 224),
    "croco_v2_vitb_small": ("croco", (768, 12, 12), (512, 8, 16), "rope100", False, 0.9, 125, 250, 12, 512, 256, 224),
    "croco_v2_vitb_base": ("croco", (768, 12, 12), (768, 12, 12), "rope100", False, 0.9, 125, 250, 12, 512, 256, 224),
    "croco_v2_vitl_base": ("croco", (1024, 24, 16), (768, 12, 12), "rope100", False, 0.9, 125, 250, 12, 512, 256, 224),
    "mimic_croco_vitb": ("croco", (768, 12, 12), (512, 8, 16), "cosine", True, 0.9, 200, 200, 20, 4096, 224, 224),
    "mimic_mae_vitb": ("mae", (768, 12, 12), (512, 8, 16), "cosine", True, 0.75, 200, 200, 20, 4096, 224, 224),
    "mae_vitl": ("mae", (1024, 24, 16), (512, 8, 16), "cosine", True, 0.75, 800, 800, 40, 4096, 256, 224),
}


def config(name: str, *arguments: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(*arguments)
    made.data.train = made.data.train or "somewhere"
    return made


def test_every_config_is_known_here():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*PUBLISHED, "croco_tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_recipe(name):
    (objective, encoder, decoder, positions, class_token, ratio, epochs, schedule, warmup, batch, size, crop) = (
        PUBLISHED[name]
    )
    made = config(name)
    experiment = check(made)
    sizes = experiment.sizes
    assert made.objective == objective
    assert (sizes.encoder_width, sizes.encoder_depth, sizes.encoder_heads) == encoder
    assert (sizes.decoder_width, sizes.decoder_depth, sizes.decoder_heads) == decoder
    assert (sizes.positions, sizes.class_token, sizes.patch_size) == (positions, class_token, 16)
    assert (sizes.mask_ratio, sizes.norm_pix_loss) == (ratio, True)
    assert sizes.position_grid == (None if positions == "rope100" else (14, 14))
    assert (experiment.size, experiment.crop) == ((size, size), (crop, crop))
    examples = 1000 * batch
    assert total_steps(made, examples) == (epochs * 1000, warmup * 1000, schedule * 1000)
    assert made.batch_size == batch
    assert (made.optimizer.b1, made.optimizer.b2, made.optimizer.weight_decay) == (0.9, 0.95, 0.05)
    peak = learning_rate(made.optimizer.base_learning_rate, batch, warmup, schedule)(warmup)
    np.testing.assert_allclose(peak, 1.5e-4 * batch / 256, rtol=1e-6)
    augmentation = experiment.augmentation
    if name.startswith("croco"):
        assert (augmentation.views, augmentation.jitter, augmentation.swap) == ("pair", 0.4, 0)
    elif name == "mimic_croco_vitb":
        assert (augmentation.views, augmentation.jitter, augmentation.swap) == ("pair", 0, 0.5)
    else:
        assert (augmentation.area, augmentation.flip) == ((0.2, 1.0), 0.5)
        assert augmentation.views == ("both" if name == "mimic_mae_vitb" else "first")
    # A batch of images takes half as many pairs where both views are images.
    assert experiment.records == (batch // 2 if augmentation.views == "both" else batch)
    assert jax.tree.leaves(nnx.state(abstract(objective, sizes)))


def test_mimics_configs_are_of_one_dataset_or_the_other():
    for name in ("mimic_croco_vitb", "mimic_mae_vitb"):
        assert [config(name, which).data.train for which in ("1m", "3m")] == ["mimic_1m", "mimic_3m"]
        with pytest.raises(ValueError, match=f"{name}.py:2m"):
            config(name, "2m")


def test_lengths_come_from_steps_or_epochs():
    made = config("croco_v1_vitb")
    assert total_steps(made, 1000) == (1562, 156, 3125)  # 400, 40 and 800 epochs of 1000 pairs, 256 a step, rounded
    made.steps = 7
    assert total_steps(made, 1000) == (7, 156, 3125)
    tiny = config("croco_tiny")
    assert total_steps(tiny, 1000) == (400, 30, 400)
    made.steps, made.epochs = None, None
    with pytest.raises(InputError, match=r"config\.steps is not set: give it, or config\.epochs"):
        total_steps(made, 1000)
    made.epochs = 0.01
    with pytest.raises(InputError, match=r"config\.steps=0"):
        total_steps(made, 1000)


def test_rectangular_views_are_described_by_both_sides():
    tiny = config("croco_tiny")
    with tiny.ignore_type():
        tiny.data.size, tiny.data.crop = (40, 68), (32, 64)
    tiny.model.positions = "cosine"
    experiment = check(tiny)
    assert experiment.crop == (32, 64)
    assert experiment.sizes.position_grid == (4, 8)
    assert sizes_of(tiny.to_dict()) == experiment.sizes
    tiny.data.crop = (32, 72)
    with pytest.raises(InputError, match=r"config\.data\.crop=\(32, 72\)"):
        check(tiny)
    tiny.data.crop = (32, 64, 3)
    with pytest.raises(InputError, match=r"config\.data\.crop=\(32, 64, 3\) must be a side"):
        check(tiny)


def test_what_cannot_be_is_refused_by_its_field():
    for changes, message in [
        ({"data.views": "both"}, r"config\.data\.views='both': objective 'croco' needs 'pair'"),
        ({"data.jitter": 2.0}, r"config\.data: jitter"),
        ({"model.predicts": False}, r"config\.model\.predicts"),
        ({"model.decoder_depth": 0}, r"config\.model\.decoder_depth=0"),
        ({"model.width": 3}, r"config\.model: .*width"),
        ({"eval.pairs": 0}, r"config\.eval\.pairs=0"),
    ]:
        made = config("croco_tiny")
        with made.unlocked():
            made.update_from_flattened_dict(changes)
        with pytest.raises(InputError, match=message):
            check(made)
    made = config("mimic_mae_vitb")
    made.batch_size = 5
    with pytest.raises(InputError, match=r"config\.batch_size=5 must be even"):
        check(made)
    with made.unlocked():
        del made.eval
    with pytest.raises(InputError, match="lacks a field"):
        check(made)
