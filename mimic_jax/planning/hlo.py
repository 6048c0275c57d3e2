"""Optimised HLO, as `compiled.as_text()` prints it, read into computations and instructions.

Only what counting needs: names, shapes with their memory space, operands, called computations, attributes as text.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

# Bytes an element; what is missing here (tokens, opaque handles) has none.
ITEM_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    **dict.fromkeys(("s4", "u4"), 0.5),
    "c128": 16,
}
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's element type and sizes. space: 0 is the device's main memory; a TPU's S(1) is on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return float(self.elements * ITEM_BYTES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. shapes: of the result, or of the leaves of its tuple."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The text of `name=…` up to the comma that ends it."""
        found = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return _until_comma(self.attributes, found.end()) if found else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """The integers of `name={1,2}`; none where it is absent."""
        return tuple(int(number) for number in re.findall(r"-?\d+", self.attribute(name) or ""))

    def called(self, name: str) -> str:
        """The computation that `name=%…` names."""
        return (self.attribute(name) or "").lstrip("%")


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(each for each in self.instructions.values() if each.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(each.inside): each for each in self.instructions.values() if each.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for each in self.instructions.values():
            for operand in dict.fromkeys(each.operands):
                users.setdefault(operand, []).append(each)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and the one that runs first."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads an optimised module.

    Raises:
      ValueError: the text is no HLO module, or a line of it has a form that is not known here.
    """
    computations, entry, name, instructions = {}, None, None, {}
    for line in text.splitlines():
        if name is None:
            if start := _COMPUTATION.match(line):
                name, instructions = start[2], {}
                entry = name if start[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, instructions)
            name = None
        elif found := _INSTRUCTION.match(line):
            instructions[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if entry not in computations:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def replica_groups(instruction: Instruction) -> Int[np.ndarray, "groups members"]:
    """Which partitions a collective joins, one group a row. XLA writes them in three ways.

    {{0,1},{2,3}} lists them. [2,2]<=[2,2]T(1,0) counts up over a grid, transposed, and cuts the result into rows.
    mesh['a'=2,'b'=2] {'a'} joins along axes of a mesh; 'a':(2)4 is a part of an axis: 4 long, 2 such in front of it.

    Raises:
      ValueError: written in a fourth way.
    """
    text = instruction.attributes
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
        rows = [[int(number) for number in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(rows)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _counted(found[2], found[3]).reshape(_integers(found[1]))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text):
        return _along_axes(*found.groups())
    raise ValueError(f"the replica groups of {instruction.name} are written in a way that is not known: {text[:200]}")


def source_target_pairs(instruction: Instruction) -> Int[np.ndarray, "pairs 2"]:
    """Who sends to whom in a collective permute."""
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.attributes)
    return np.array([_integers(pair) for pair in re.findall(r"\{([\d,]+)\}", found[1])]).reshape(-1, 2)


def _along_axes(axes: str, devices: str | None, joined: str) -> Int[np.ndarray, "groups members"]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    wanted = dict(re.findall(r"'([^']+)'(?::(\(\d+\)\d+))?", joined))
    ids = np.arange(math.prod(sizes.values()))
    if devices:
        grid = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices)
        ids = _counted(grid[1], grid[2]) if grid else np.array(_integers(devices))
    dims, inside = [], []  # a part of an axis is an axis of its own
    for name, size in sizes.items():
        parts = [size]
        if wanted.get(name):
            before, length = _integers(wanted[name].strip("(").replace(")", ","))
            parts = [before, length, size // before // length]
        inside += [len(dims) + (1 if len(parts) == 3 else 0)] if name in wanted else []
        dims += parts
    members = math.prod(dims[axis] for axis in inside)
    last = np.moveaxis(ids.reshape(dims), inside, range(len(dims) - len(inside), len(dims)))
    return last.reshape(-1, members)


def _counted(grid: str, order: str | None) -> Int[np.ndarray, " members"]:
    counted = np.arange(math.prod(_integers(grid))).reshape(_integers(grid))
    return counted.transpose(_integers(order)).ravel() if order else counted.ravel()


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    type_end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", type_end)
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing]
    return Instruction(
        name,
        text[type_end:opening].strip(),
        tuple(_shapes(text[:type_end])),
        tuple(_NAME.findall(inside)),
        inside,
        text[closing + 1 :].lstrip(", "),
        is_root,
    )


def _shapes(text: str) -> Iterator[Shape]:
    for found in _SHAPE.finditer(text):
        space = _SPACE.search(found[0])
        dims = tuple(int(size.strip("<=")) for size in found[2].split(",") if size)
        yield Shape(found[1], dims, int(space[1]) if space else 0)


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"a parenthesis is never closed: {text[:200]}")


def _until_comma(text: str, start: int) -> str:
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(text[place], 0)
        if text[place] in ", " and not depth:
            return text[start:place]
    return text[start:]
