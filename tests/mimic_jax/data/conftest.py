"""Datasets of numbered pairs, alone, together, weighted, and with scenes held out."""

import numpy as np
import pytest

from mimic_jax import records
from mimic_jax.data.mixture import all_examples, hold_out, open_mixture
from tests.datasets import write_dataset
from tests.mimic_jax.data.numbered import write_numbered

SIZES = {"a": 23, "b": 7, "c": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Datasets of 23, 7 and 12 pairs, numbered through, three of them a scene."""
    folder, first = tmp_path_factory.mktemp("data"), 0
    for name, count in SIZES.items():
        write_numbered(folder / name, first, count)
        first += count
    return {name: str(folder / name) for name in SIZES}


@pytest.fixture
def one(folders):
    return all_examples(open_mixture(folders["a"], "f"))


@pytest.fixture
def several(folders):
    return all_examples(open_mixture(list(folders.values()), "f"))


@pytest.fixture
def weighted(folders):
    return all_examples(open_mixture([(folders["a"], 2), (folders["b"], 1), (folders["c"], 0.5)], "f"))


@pytest.fixture
def training(folders):
    """What is left of two datasets when scenes are held out."""
    return hold_out(open_mixture(f"{folders['a']},{folders['c']}", "f"), 0.3)[0]


@pytest.fixture(params=["one", "several", "weighted", "training"])
def examples(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def broken(tmp_path):
    """A dataset with a view that is none."""
    junk = records.Pair(b"junk", b"junk", np.zeros(4, np.int16), np.eye(3, dtype=np.float32), 0.5, 9, "s", "kitchen")
    write_dataset(tmp_path / "broken", [junk], shards=1)
    return str(tmp_path / "broken")
