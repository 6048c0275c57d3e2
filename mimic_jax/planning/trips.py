"""How often a loop of an optimised module runs."""

import json
import re

from mimic_jax.planning.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":(\{[^}]*\})')
# A value is `offset`, or `offset` more than the loop's counter.
_Value = tuple[bool, int]


def trip_count(loop: Instruction, computation: Computation, module: Module) -> int | None:
    """Trips of a `while`: as the compiler wrote it down, else by its condition.

    The condition compares one counter with a constant; the counter starts at a constant and grows by one each trip.
    None where the loop is none of these.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(json.loads(known[1])["n"])
    condition, body = (module.computations[loop.called(name)] for name in ("condition", "body"))
    test = condition.root
    if test.opcode == "fusion":
        return _of_test(_inlined(test, condition, module), loop, computation, body, module)
    return _of_test((test, condition, {}), loop, computation, body, module)


def _inlined(fusion, computation, module):
    inner = module.computations[fusion.called("calls")]
    given = {inner.parameters[place].name: (name, computation) for place, name in enumerate(fusion.operands)}
    return inner.root, inner, given


def _of_test(test, loop, computation, body, module) -> int | None:
    compare, where, given = test
    if compare.opcode != "compare" or compare.attribute("direction") not in ("LT", "LE", "NE"):
        return None
    sides = []
    for name in compare.operands:
        inner = where
        while name in given:
            name, inner = given[name]
        sides.append((name, inner))
    counter, end = (_look_through(name, inner) for name, inner in sides)
    if counter.opcode != "get-tuple-element" or end.opcode != "constant":
        return None
    place = int(counter.attribute("index"))
    start = _constant_of_tuple(computation.instructions[loop.operands[0]], place, computation)
    step = _step(body, place, module)
    if start is None or not step:
        return None
    last = int(end.inside) + (compare.attribute("direction") == "LE")
    return max(0, -(-(last - start) // step))


def _look_through(name: str, computation: Computation) -> Instruction:
    found = computation.instructions[name]
    while found.opcode in ("copy", "bitcast", "convert"):
        found = computation.instructions[found.operands[0]]
    return found


def _constant_of_tuple(found: Instruction, place: int, computation: Computation) -> int | None:
    if found.opcode != "tuple":
        return None
    leaf = _look_through(found.operands[place], computation)
    return int(leaf.inside) if leaf.opcode == "constant" else None


def _step(body: Computation, place: int, module: Module) -> int | None:
    """How much the counter grows in a trip."""
    if body.root.opcode != "tuple":
        return None
    value = _value(body.root.operands[place], body, place, {}, module)
    return value[1] if value and value[0] else None


def _value(name: str, inside: Computation, place: int, given: dict[str, _Value], module: Module) -> _Value | None:
    """A scalar as a number, or as the counter and a number."""
    if name in given:
        return given[name]
    found = inside.instructions[name]
    if found.opcode in ("copy", "bitcast"):
        return _value(found.operands[0], inside, place, given, module)
    if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.inside):
        return False, int(found.inside)
    if found.opcode == "get-tuple-element" and int(found.attribute("index")) == place:
        return True, 0
    if found.opcode not in ("add", "fusion"):
        return None
    values = [_value(operand, inside, place, given, module) for operand in found.operands]
    if found.opcode == "fusion":
        inner = module.computations[found.called("calls")]
        known = {inner.parameters[at].name: value for at, value in enumerate(values) if value}
        return _value(inner.root.name, inner, -1, known, module)
    if None in values or all(value[0] for value in values):
        return None
    return any(value[0] for value in values), sum(value[1] for value in values)
