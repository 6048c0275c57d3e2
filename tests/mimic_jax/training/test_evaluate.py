"""The ratio that a run is judged by, against what it must be for models whose use of the second view is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.models.croco import CroCo, CroCoSizes
from mimic_jax.training.evaluate import second_view_errors
from tests.datasets import make_pair, write_dataset

SIZES = {"size": 40, "crop": 32}


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "d", [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(7)])
    return records.open_dataset(tmp_path / "d")


@pytest.fixture
def model():
    return CroCo(CroCoSizes(32, 1, 2, 32, 1, 2, patch_size=8, mask_ratio=0.5), rngs=nnx.Rngs(0))


def test_a_model_that_ignores_the_second_view_has_a_ratio_of_one(model, dataset):
    out = model.decoder.cross_attention.out
    out.kernel.set_value(jnp.zeros_like(out.kernel.get_value()))
    errors = second_view_errors(model, dataset, batch=3, **SIZES)
    assert errors["ratio"] == 1
    assert errors["pairs"] == 7


def test_errors_are_those_of_the_views_they_name(dataset):
    """A stand-in whose error says which views it got: 100 · first view's mark + second view's mark."""
    seen = []

    class Marks(CroCo):
        def __init__(self):
            pass

        def random_visible(self, key, images):
            return jax.random.randint(key, (len(images), 1), 0, 1000)

        def loss(self, view1, view2, visible):
            jax.debug.callback(lambda *x: seen.append([np.asarray(y) for y in x]), view1[:, 0, 0, 0], view2, visible)
            return view2.mean((1, 2, 3))

    errors = second_view_errors(Marks(), dataset, **SIZES)
    jax.effects_barrier()
    (first, right, masks), (again, wrong, same_masks) = seen
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(masks, same_masks)
    np.testing.assert_allclose(errors["right"], right.mean((1, 2, 3)).mean(), rtol=1e-5)
    np.testing.assert_allclose(errors["wrong"], wrong.mean((1, 2, 3)).mean(), rtol=1e-5)
    # In the order of the records, pair i is of scene order[i] % 3; its wrong view is one of another scene.
    order = [*range(0, 7, 2), *range(1, 7, 2)]
    for row, view in enumerate(wrong):
        source = [i for i, other in enumerate(right) if np.array_equal(view, other)]
        assert len(source) == 1
        assert order[source[0]] % 3 != order[row] % 3


def test_one_scene_has_no_wrong_view(model, tmp_path, dataset):
    write_dataset(tmp_path / "one", [make_pair(seed, scene="kitchen") for seed in range(3)])
    one = records.open_dataset(tmp_path / "one")
    with pytest.raises(InputError, match="kitchen"):
        second_view_errors(model, one, **SIZES)
    assert second_view_errors(model, one, others=dataset, **SIZES)["pairs"] == 3
