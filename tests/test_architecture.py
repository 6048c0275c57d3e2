"""The figure of the architecture says what the import table says."""

from pathlib import Path
from xml.etree import ElementTree

from tests.test_imports import OTHERS, TABLE

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"


def parts(names: set[str]) -> set[str]:
    """The folders of modules such as mimic_jax.viz.pictures or data.source."""
    return {name.removeprefix("mimic_jax.").split(".")[0] for name in names}


def figure() -> tuple[set[str], set[tuple[str, str]]]:
    """The boxes, and the arrows between them."""
    elements = list(ElementTree.parse(FIGURE).getroot().iter())
    boxes = {element.get("data-name") for element in elements if element.get("data-name")}
    arrows = {(element.get("data-from"), element.get("data-to")) for element in elements if element.get("data-from")}
    return boxes, arrows


def reached(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    found, todo = set(), [start]
    while todo:
        following = {to for origin, to in arrows if origin == todo[-1]} - found
        todo.pop()
        found |= following
        todo += following
    return found


def test_every_arrow_may_be_imported_and_every_import_follows_from_arrows():
    boxes, arrows = figure()
    table = {name: parts(may) for name, may in (TABLE | OTHERS).items()}
    assert {each for arrow in arrows for each in arrow} == boxes
    assert boxes - {"launch"} <= table.keys()
    folders = {name for name in table if (FIGURE.parents[2] / "mimic_jax" / name).is_dir()}
    assert folders | {"task", "configs", "data_prep"} <= boxes
    for origin, to in arrows:
        assert origin == "launch" or to in table[origin], f"{origin} may not import {to}"
    for name in boxes - {"launch"}:
        assert table[name] & boxes - {name} <= reached(name, arrows), name
        for forbidden in ("launch", "planning"):
            assert forbidden not in reached(name, arrows)
    assert not {"tasks", "viz", "evaluation"} & reached("planning", arrows)
