"""What the benchmark of the train step decides by itself."""

import pytest

from benchmarks.train_step import MOST, Measured, Row, cells, largest_batch


@pytest.mark.parametrize(
    ("limit", "batch"), [(100.0, 1), (299.0, 1), (306.0, 4), (459.0, 128), (900.0, 512), (1e9, MOST)]
)
def test_the_largest_power_of_two_that_fits(limit, batch):
    """Of a step that takes 300, and 1 more for each example."""
    assert largest_batch(lambda rows: 300.0 + rows, limit) == batch


def test_a_share_of_the_matrix_product():
    """2 s for 6 TFLOP is 3 TFLOP/s: half of 6, a quarter of 12."""
    row = Row("croco_tiny", {"compute_dtype": "bfloat16", "run.remat": "dots"}, None, 20)
    found = Measured(64, 2.0, 6 * 10**12, 6e12, 12e12, 3 * 2**30, False, 41.0)
    told = ["64", "2,000.0", "32.0", "3", "6", "50%", "25%", "3.00*", "41"]
    assert cells(row, found) == ["croco_tiny", "bfloat16", "remat dots", *told]
    assert cells(row, "out of memory at 64 examples")[-1] == "out of memory at 64 examples"


def test_a_row_changes_its_config_alone():
    row = Row("croco_v2_vitl_base", {"compute_dtype": "bfloat16", "run.attention": "cudnn"}, 8, 1)
    config = row.read(16)
    assert (config.batch_size, config.compute_dtype, config.run.attention) == (16, "bfloat16", "cudnn")
    assert config.model.encoder_depth == 24
    task, settings = row.parts(16)
    assert task.batch["view1"].shape[0] == settings.experiment.batch_size == 16
