"""The configs have the published recipes."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax.models.kinds import abstract
from mimic_jax.tasks import make_task
from mimic_jax.training import config as configs
from mimic_jax.training.config import Lengths, lengths_of
from mimic_jax.training.optimizer import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"

# The recipes as the papers and their released code have them: kind of model, encoder (width, depth, heads), decoder,
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
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*PUBLISHED, "croco_tiny", "common"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_recipe(name):
    (kind, encoder, decoder, positions, class_token, ratio, epochs, schedule, warmup, batch, size, crop) = PUBLISHED[
        name
    ]
    made = config(name)
    task, settings = make_task(made), configs.read(made)
    sizes = task.backbone.sizes
    assert task.backbone.kind == kind
    assert (sizes.encoder_width, sizes.encoder_depth, sizes.encoder_heads) == encoder
    assert (sizes.decoder_width, sizes.decoder_depth, sizes.decoder_heads) == decoder
    assert (sizes.positions, sizes.class_token, sizes.patch_size) == (positions, class_token, 16)
    assert (sizes.mask_ratio, sizes.norm_pix_loss) == (ratio, True)
    assert sizes.position_grid == (None if positions == "rope100" else (14, 14))
    assert (task.backbone.seen.size, task.backbone.seen.crop) == ((size, size), (crop, crop))
    examples = 1000 * batch
    assert lengths_of(settings, examples) == Lengths(epochs * 1000, warmup * 1000, schedule * 1000)
    assert settings.experiment.batch_size == batch
    assert (made.optimizer.b1, made.optimizer.b2, made.optimizer.weight_decay) == (0.9, 0.95, 0.05)
    peak = learning_rate(settings.optimizer.peak(batch), warmup, schedule)(warmup)
    np.testing.assert_allclose(peak, 1.5e-4 * batch / 256, rtol=1e-6)
    data = made.data
    if name.startswith("croco"):
        assert (data.views, data.jitter, data.swap) == ("pair", 0.4, 0)
    elif name == "mimic_croco_vitb":
        assert (data.views, data.jitter, data.swap) == ("pair", 0, 0.5)
    else:
        assert (data.area, data.flip) == ((0.2, 1.0), 0.5)
        assert data.views == ("both" if name == "mimic_mae_vitb" else "first")
    # A batch of images takes half as many pairs where both views are images.
    records = batch // 2 if data.views == "both" else batch
    names = {"both": 2, "pair": 2, "first": 1}[data.views]
    assert [leaf.shape for leaf in task.batch.values()] == names * [(records, size, size, 3)]
    assert task.examples_per_record == batch // records
    assert jax.tree.leaves(nnx.state(abstract(kind, sizes)))


def test_mimics_configs_are_of_one_dataset_or_the_other():
    for name in ("mimic_croco_vitb", "mimic_mae_vitb"):
        assert [config(name, which).data.train for which in ("1m", "3m")] == ["mimic_1m", "mimic_3m"]
        with pytest.raises(ValueError, match=f"{name}.py:2m"):
            config(name, "2m")
