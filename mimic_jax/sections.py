"""Sections of a config, read into frozen dataclasses whose fields say what they mean and which values they take.

A section is a dataclass whose fields are made by `setting`; `read` checks a config against it. Never imports jax.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mimic_jax.command import InputError

Section = TypeVar("Section")
Side = tuple[int, int]
# Height and width in pixels, or one number for both.
Sides = int | tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field means, and the range of its numbers. low, high: inclusive. above, below: exclusive."""

    meaning: str
    low: int | float | None = None
    high: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None
    choices: tuple[str, ...] = ()

    def range(self) -> str:
        """The values that a field takes, for a person; empty where any value of its type is taken."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        bounds = (("at least", self.low), ("above", self.above), ("at most", self.high), ("below", self.below))
        return ", ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)

    def takes(self, value: Any) -> bool:
        """Whether a value of the right type is in the range; the numbers of a tuple are checked one by one."""
        if isinstance(value, tuple):
            return all(map(self.takes, value))
        if self.choices and isinstance(value, str):
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(meaning: str, **range_: Any) -> Any:
    """A field of a section; see `Setting` for its range."""
    return dataclasses.field(metadata={"setting": Setting(meaning, **range_)})


def read(section: type[Section], values: Any, name: str) -> Section:
    """Reads a section of a config.

    Args:
      section: a dataclass whose fields were made by `setting`.
      values: the section of the config, a mapping.
      name: the section's name, as "config.run"; for messages.

    Raises:
      InputError: names every field that is missing, unknown, of another type or out of its range; or what the
        section's own check (`__post_init__`, ValueError) refuses.
    """
    if not isinstance(values, Mapping) and not hasattr(values, "to_dict"):
        raise InputError(f"{name}={values!r} must be a section with the fields {', '.join(_names(section))}")
    given = _plain(values)
    hints, problems, found = typing.get_type_hints(section), [], {}
    for field in dataclasses.fields(section):
        about: Setting = field.metadata["setting"]
        if field.name not in given:
            problems.append(f"{name}.{field.name} is missing")
            continue
        value, hint = given.pop(field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            value = read(hint, value, f"{name}.{field.name}")
        elif not _fits(value, hint):
            problems.append(f"{name}.{field.name}={value!r} must be {_type_name(hint)}")
        elif not about.takes(value):
            problems.append(f"{name}.{field.name}={value!r} must be {about.range()}")
        found[field.name] = _as_float(value, hint)
    problems += [f"{name}.{field} is unknown" for field in given]
    if problems:
        raise InputError("; ".join(problems))
    try:
        return section(**found)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def both_sides(value: Sides) -> Side:
    """(height, width) of a size that is given as one side of a square or as both sides."""
    return (value, value) if isinstance(value, int) else tuple(value)


def describe(section: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, range and meaning of every field of a section and of its inner sections, for a reference page."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        about: Setting = field.metadata["setting"]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from ((f"{field.name}.{inner}", *others) for inner, *others in describe(hints[field.name]))
        else:
            yield field.name, _type_name(hints[field.name]), about.range(), about.meaning


def _names(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def _plain(values: Any) -> Any:
    """Sections as dicts, and sequences as tuples: a config has either kind of each, JSON has others."""
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    return tuple(map(_plain, values)) if isinstance(values, Sequence) and not isinstance(values, str) else values


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is dict:
        entries = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_fits(key, arguments[0]) and _fits(each, arguments[1]) for key, each in entries)
    if hint is Any:
        return True
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)


def _as_float(value: Any, hint: Any) -> Any:
    """A number in the type of its field: an integer is a number where the field takes any."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple):
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(map(_as_float, value, hints))
    takes_float = hint is float or (float in arguments and int not in arguments)
    return float(value) if takes_float and type(value) is int else value


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == Sides:
        return "a side in pixels, or (height, width)"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(_type_name, arguments)))
    if origin is tuple:
        inner = [_type_name(each) for each in arguments if each is not Ellipsis]
        return f"({', '.join(inner)}{', …' if Ellipsis in arguments else ''})"
    if origin is dict:
        return f"a section of {_type_name(arguments[1])}"
    names = {int: "an integer", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
