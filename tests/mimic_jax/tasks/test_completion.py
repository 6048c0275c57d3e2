"""The task of completing views: what a config describes, and what a bug in our code does."""

import pytest

from configs import croco_tiny, mimic_croco_vitb, mimic_mae_vitb
from mimic_jax.command import InputError
from mimic_jax.models.description import from_config
from mimic_jax.tasks import completion, make_task


def tiny(**changes):
    config = croco_tiny.get_config()
    config.data.train = "unopened"
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_mimics_configs_are_of_one_dataset_or_the_other():
    for module in (mimic_croco_vitb, mimic_mae_vitb):
        assert [module.get_config(which).data.train for which in ("1m", "3m")] == ["mimic_1m", "mimic_3m"]
        with pytest.raises(ValueError, match=f"{module.__name__.split('.')[1]}.py:2m"):
            module.get_config("2m")


def test_rectangular_views_are_described_by_both_sides():
    config = tiny(data__size=(40, 68), data__crop=(32, 64), model__positions="cosine")
    backbone = make_task(config).backbone
    assert (backbone.seen.size, backbone.seen.crop) == ((40, 68), (32, 64))
    assert backbone.sizes.position_grid == (4, 8)
    assert from_config(config.to_dict()) == backbone
    with pytest.raises(InputError, match=r"^config\.data\.crop=\(32, 72\) must be a multiple of .* and at most"):
        make_task(tiny(data__size=(40, 68), data__crop=(32, 72)))


def test_sizes_that_are_left_open_come_from_the_weights():
    known = make_task(tiny(model__encoder_width=64, model__decoder_depth=1)).backbone.sizes
    open_ = tiny()
    with open_.unlocked():
        del open_.model["encoder_width"]
        del open_.model["decoder_depth"]
    assert make_task(open_, known).backbone.sizes == known
    with pytest.raises(InputError, match=r"^config\.model\.encoder_width is not set: give --config\.model\.encoder_"):
        make_task(open_)


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_some_patches_are_hidden_and_some_are_not(ratio):
    with pytest.raises(InputError, match=rf"^config\.model\.mask_ratio={ratio} of 64 patches leaves (0|64) visible"):
        make_task(tiny(model__mask_ratio=ratio, model__class_token=ratio > 0.5, model__positions="cosine"))


def test_a_bug_of_ours_is_raised_as_itself(monkeypatch):
    """Below the check of a config nothing is taken for the user's mistake."""

    def broken(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    for name in ("read_model", "_augmentation", "_records", "model_flops"):
        with monkeypatch.context() as patch:
            patch.setattr(completion, name, broken)
            with pytest.raises(AttributeError, match="NoneType"):
                make_task(tiny())
