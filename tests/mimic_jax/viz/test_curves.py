"""Curves: the lines that are drawn are those that were given, and the file is one that others read."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from mimic_jax.command import InputError
from mimic_jax.viz.curves import draw_curves, save

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5)
LINES = st.dictionaries(st.sampled_from(["run", "other", "third"]), VALUES, min_size=1)


@hypothesis.given(st.dictionaries(st.sampled_from(["loss", "ratio", "psnr", "error"]), LINES, min_size=1))
@hypothesis.settings(max_examples=8)
def test_each_quantity_has_axes_and_each_run_a_line(values):
    curves = {
        quantity: {run: (list(range(10, 10 + len(line))), line) for run, line in lines.items()}
        for quantity, lines in values.items()
    }
    figure = draw_curves(curves)
    assert [axes.get_ylabel() for axes in figure.axes] == list(curves)
    colours = {}
    for axes, lines in zip(figure.axes, curves.values(), strict=True):
        drawn = {line.get_label(): line for line in axes.get_lines()}
        assert drawn.keys() == lines.keys()
        for run, (steps, line) in lines.items():
            np.testing.assert_array_equal(drawn[run].get_xdata(), steps)
            np.testing.assert_array_equal(drawn[run].get_ydata(), line)
            assert colours.setdefault(run, to_hex(drawn[run].get_color())) == to_hex(drawn[run].get_color())
    assert len(set(colours.values())) == len(colours), "two runs have one colour"
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sorted(named) == (sorted(colours) if len(colours) > 1 else [])


def test_a_figure_is_written_as_a_picture(tmp_path):
    path = tmp_path / "new" / "curves.picture"
    save(draw_curves({"loss": {"run": ([1, 2, 3], [3.0, 2.0, float("nan")])}}, "Pre-training"), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (600, 350)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/curves\.png: cannot be written"):
        save(draw_curves({"loss": {"run": ([1], [3.0])}}), tmp_path / "file" / "curves.png")
