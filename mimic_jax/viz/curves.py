"""Curves of training runs, as figures of matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mimic_jax.command import InputError

Curve = tuple[Sequence[int], Sequence[float]]

_COLUMNS = 3


def draw_curves(curves: Mapping[str, Mapping[str, Curve]], title: str = "") -> Figure:
    """Axes for each quantity, in rows of three, with a line for each run that has it.

    Args:
      curves: by the name of the quantity and the name of the run, the steps and the values there. A run has the same
        colour everywhere.
    """
    # Figure, not pyplot: no display, no global state.
    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // _COLUMNS)
    figure = Figure(figsize=(6 * columns, 3.5 * rows), dpi=100, layout="constrained")
    runs = list(dict.fromkeys(run for lines in curves.values() for run in lines))
    for place, (quantity, lines) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for run, (steps, values) in lines.items():
            # Few points are marked: a line through one of them would not be seen.
            marker = "." if len(steps) < 30 else None
            axes.plot(steps, values, f"C{runs.index(run)}", linewidth=1, marker=marker, label=run)
        axes.set(xlabel="step", ylabel=quantity)
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(4, len(runs)))
    if title:
        figure.suptitle(title)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
      InputError: the path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
