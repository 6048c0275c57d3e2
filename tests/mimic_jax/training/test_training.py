"""Training from start to end in this process: every kind of model, initial weights, evaluation, mixtures."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import croco_tiny, mimic_croco_vitb, mimic_mae_vitb
from mimic_jax.command import InputError
from mimic_jax.interop.load import load
from mimic_jax.interop.weights import Weights, save_folder
from mimic_jax.models.kinds import build
from mimic_jax.models.sizes import Sizes
from mimic_jax.task import Task
from mimic_jax.tasks import make_task
from mimic_jax.training import loop
from mimic_jax.training.run import check_initial
from tests.datasets import make_pair, write_dataset
from tests.random_weights import random_params

SIZES = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 1}
SIZES |= {"decoder_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(folder, [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(11)])
    return folder


def train(config, workdir):
    loop.train(config, workdir, make_task)


def small(module, dataset, **changes):
    config = module.get_config()
    config.model.update(SIZES)
    config.data.train = str(dataset)
    config.data.size = config.data.crop = 32
    config.batch_size = 4
    config.steps = 3
    config.evals.completion.every = config.evals.correspondence.every = 0
    if "warmup_steps" in config.optimizer:
        config.optimizer.warmup_steps = 1
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def evaluating(every, examples):
    return {
        f"evals__{name}__{field}": value
        for name in ("completion", "correspondence")
        for field, value in (("every", every), ("examples", examples))
    }


def completing(kind: str, sizes: Sizes) -> Task:
    """A task of completion whose model has these sizes."""
    config = croco_tiny.get_config()
    with config.unlocked(), config.ignore_type():
        config.model = ConfigDict(dataclasses.asdict(sizes) | {"kind": kind})
        config.data.update(train="unopened", size=32, crop=32, views="pair" if kind == "croco" else "first")
        config.data.swap = 0.5 if kind == "croco" else 0.0
    return make_task(config)


@pytest.mark.parametrize("module", [mimic_croco_vitb, mimic_mae_vitb])
def test_the_published_kinds_train_and_evaluate(dataset, tmp_path, module):
    config = small(module, dataset, epochs=1.2, **evaluating(2, 8), evals__completion__pictures=1)
    config.steps = None
    config.optimizer.warmup_epochs = 0
    train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # One scene of three is held out; single images are two of each pair, and a step takes four.
    held_out = [line["evaluation"]["pairs"] for line in lines if "evaluation" in line]
    left = 11 - held_out[0]
    images = 2 if module is mimic_mae_vitb else 1
    steps = round(1.2 * left * images / 4)
    assert [line["step"] for line in lines if "evaluation" in line] == [*range(2, steps, 2), steps]
    weights = load(tmp_path)
    assert weights.about["step"] == steps
    assert weights.sizes.position_grid == (4, 4)
    assert weights.about["data"][0]["pairs"] == 11
    assert weights.about["evaluation"]["evaluation"].keys() >= {"error", "psnr"}
    assert any((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "best.json").read_text())["completion"]["number"] == "error"


def test_tensorboard_has_numbers_and_pictures(dataset, tmp_path):
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401
    from tensorboardX.proto.event_pb2 import Event

    train(small(croco_tiny, dataset, **evaluating(3, 4), evals__completion__pictures=2), tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    data, tags, place = events.read_bytes(), {}, 0
    while place < len(data):  # TFRecord: length, checksum, event, checksum
        length = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + length])
        tags |= {value.tag: (event.step, value) for value in event.summary.value}
        place += 16 + length
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    step, value = tags["train/loss"]
    assert (step, value.simple_value) == (3, pytest.approx(lines[-2]["loss"], rel=1e-6))
    step, value = tags["evaluation/ratio"]
    assert value.simple_value == pytest.approx(lines[-1]["evaluation"]["ratio"], rel=1e-6)
    assert tags["reconstruction"][1].image.height > 32


def test_a_mixture_trains_and_knows_its_own_checkpoint(dataset, tmp_path):
    other = tmp_path / "other"
    write_dataset(other, [make_pair(100 + seed, scene=f"place {seed % 2}") for seed in range(6)])
    config = small(croco_tiny, f"{dataset},{other}")
    train(config, tmp_path / "run")
    assert [each["pairs"] for each in load(tmp_path / "run").about["data"]] == [11, 6]
    config = small(croco_tiny, dataset)
    config.steps, config.optimizer.total_steps = 3, 3
    with pytest.raises(InputError, match=r"config\.data\.train has changed"):
        train(config, tmp_path / "run")
    with config.ignore_type():
        config.data.train = ((str(dataset), 3), (str(other), 1))
    train(config, tmp_path / "weighted")
    about = load(tmp_path / "weighted").about
    assert [each["weight"] for each in about["data"]] == [3, 1]
    # Begun again, the run knows its own config, though JSON has lists where Python had tuples.
    train(config, tmp_path / "weighted")


def test_an_evaluation_set_may_move_and_not_come_or_go(dataset, tmp_path):
    for name in ("there", "elsewhere"):
        shutil.copytree(dataset, tmp_path / name)
    fields = {"steps": 2, "data__validation": str(tmp_path / "there")}
    train(small(croco_tiny, dataset, **fields), tmp_path / "run")
    train(small(croco_tiny, dataset, **fields | {"data__validation": str(tmp_path / "elsewhere")}), tmp_path / "run")
    with pytest.raises(
        InputError, match=r"config\.data\.validation='.*there' \(now ''\), which decides which scenes are"
    ):
        train(small(croco_tiny, dataset, **fields | {"data__validation": ""}), tmp_path / "run")


def test_training_begins_from_given_weights(dataset, tmp_path, capsys):
    """With a learning rate of 0 the checkpoint is what training began from."""
    sizes = Sizes(**SIZES, positions="rope100")
    params = nnx.to_pure_dict(nnx.state(build("croco", sizes, nnx.Rngs(7))))
    whole = Weights("croco", sizes, jax.tree.map(np.asarray, params), {})
    save_folder(whole, tmp_path / "whole")
    encoder = Weights("vit", dataclasses.replace(sizes, decoder_depth=0), {"encoder": whole.params["encoder"]}, {})
    save_folder(encoder, tmp_path / "encoder")
    still = {"optimizer__base_learning_rate": 0.0, "steps": 2}

    train(small(croco_tiny, dataset, init=str(tmp_path / "whole"), **still), tmp_path / "run")
    found = load(tmp_path / "run").params
    jax.tree.map(np.testing.assert_array_equal, found, whole.params)
    assert "starts from" in capsys.readouterr().out

    train(small(croco_tiny, dataset, init=str(tmp_path / "encoder"), **still), tmp_path / "from_encoder")
    found = load(tmp_path / "from_encoder").params
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], whole.params["encoder"])
    assert not np.array_equal(found["mask_token"], whole.params["mask_token"])
    assert "fresh: decoder, decoder_embed, decoder_norm, mask_token, prediction_head" in capsys.readouterr().out


def test_a_run_carries_on_from_its_own_checkpoint_and_not_from_the_weights_again(dataset, tmp_path):
    sizes = Sizes(**SIZES, positions="rope100")
    save_folder(Weights("croco", sizes, random_params("croco", sizes), {}), tmp_path / "given")
    begun = {"init": str(tmp_path / "given"), "optimizer__total_steps": 4, "run__checkpoint_every": 2}
    train(small(croco_tiny, dataset, steps=4, **begun), tmp_path / "whole")
    train(small(croco_tiny, dataset, steps=4, **begun), tmp_path / "resumed")
    # What was begun from may be gone by then.
    shutil.rmtree(tmp_path / "given")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    train(small(croco_tiny, dataset, steps=4, **begun), tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "resumed").params, load(tmp_path / "whole").params)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_width", 32),
        ("encoder_depth", 2),
        ("encoder_heads", 4),
        ("patch_size", 16),
        ("class_token", False),
        ("positions", "learned"),
        ("position_grid", (2, 2)),
        ("decoder_width", 32),
        ("decoder_depth", 2),
        ("decoder_heads", 4),
    ],
)
def test_weights_of_another_model_are_refused_by_every_size_that_differs(field, value):
    """Most would not show in the shapes, and a model would begin from nonsense."""
    sizes = Sizes(**SIZES, positions="cosine", class_token=True, position_grid=(4, 4))
    given = Weights("croco", dataclasses.replace(sizes, **{field: value}), {}, {})
    with pytest.raises(InputError, match=f"--config.model.{field}="):
        check_initial(given, completing("croco", sizes))
    if field.startswith("decoder"):  # of another kind of model the encoder alone is taken
        check_initial(given, completing("mae", sizes))
    assert "decoder" in check_initial(dataclasses.replace(given, sizes=sizes), completing("croco", sizes))


@pytest.mark.parametrize("positions", ["cosine", "learned"])
def test_positions_stay_those_that_the_weights_know(dataset, tmp_path, positions):
    """Begun on a grid of 2 × 2 and continued at 4 × 4, a model sees positions between those it knows."""
    sizes = Sizes(**SIZES, positions=positions, class_token=True, position_grid=(2, 2))
    save_folder(Weights("croco", sizes, random_params("croco", sizes), {}), tmp_path / "given")
    begun = {"init": str(tmp_path / "given"), "model__positions": positions, "model__class_token": True, "steps": 3}
    for _ in range(2):
        train(small(croco_tiny, dataset, run__checkpoint_every=2, **begun), tmp_path / "run")
        assert [load(tmp_path / "run", step).sizes.position_grid for step in (2, 3)] == [(2, 2)] * 2
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")


def test_a_single_scene_holds_nothing_out_and_says_so(tmp_path, capsys):
    write_dataset(tmp_path / "one", [make_pair(seed, scene="kitchen") for seed in range(5)])
    train(small(croco_tiny, tmp_path / "one", **evaluating(1, 4)), tmp_path / "run")
    assert "single scene" in capsys.readouterr().out
    assert "evaluation" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_rectangular_views_train(dataset, tmp_path):
    config = small(croco_tiny, dataset, **evaluating(3, 4))
    with config.ignore_type():
        config.data.size, config.data.crop = (26, 44), (24, 40)
    train(config, tmp_path)
    assert load(tmp_path).about["evaluation"]["evaluation"]["pairs"] == 4
