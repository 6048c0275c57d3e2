"""One dataset and one uninterrupted run, for all that interrupt others."""

import pytest

from tests.datasets import make_pair, write_dataset
from tests.launch.training import pretrain


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_dataset(folder, [make_pair(seed, scene=f"scene {seed % 3}") for seed in range(11)])
    return folder


@pytest.fixture(scope="session")
def uninterrupted(tiny_pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = pretrain(tiny_pairs, workdir)
    assert done.returncode == 0, done.stderr
    return workdir
