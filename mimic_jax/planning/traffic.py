"""Bytes that an instruction moves between a device's main memory and its cores.

Each operand is read once and each result written once: what a kernel reads again is not known here.
"""

import math

from mimic_jax.planning.hlo import Computation, Instruction, Module

# They move no data themselves, or their parts are counted.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "call", "conditional", "optimization-barrier", "async-start", "async-update", "async-done", "domain"),
    *("copy-done", "slice-done", "send-done", "recv-done", "all-reduce-done", "all-gather-done"),
    *("collective-permute-done", "reduce-scatter-done", "all-to-all-done", "add-dependency"),
}


def moved(each: Instruction, computation: Computation, module: Module) -> float:
    """Bytes that an instruction which is no part of a fusion reads from main memory and writes to it."""
    if each.opcode in _FREE or (each.opcode == "custom-call" and '"AllocateBuffer"' in each.attributes):
        return 0.0
    operands = [computation.instructions[name] for name in each.operands]
    if each.opcode == "fusion":
        inner = module.computations[each.called("calls")]
        if _ends_in(inner, "AsyncCollectiveDone"):
            return 0.0
        read = math.fsum(
            _read(inner.parameters[place], inner, module, _main(shape)) for place, shape in enumerate(operands)
        )
        roots = [inner.root]
        if _ends_in(inner, "AsyncCollectiveStart"):  # a tuple of what is sent, what arrives, and flags
            return read + each.shapes[1].bytes * (each.shapes[1].space == 0)
        if inner.root.opcode == "tuple":
            roots = [inner.instructions[name] for name in inner.root.operands]
        written = math.fsum(
            _written(root, inner) * (shape.space == 0) for root, shape in zip(roots, each.shapes, strict=False)
        )
        return read + written
    if each.opcode in ("copy-start", "slice-start"):
        # The result is a tuple of what arrives, the source and a flag, or for slices the source first.
        shapes = each.shapes[:2] if each.opcode == "copy-start" else (each.shapes[1],)
        arrived = shapes[0]
        source = operands[0].shapes[0]
        return arrived.bytes * ((source.space == 0) + (arrived.space == 0))
    written = math.fsum(shape.bytes for shape in each.shapes if shape.space == 0)
    if each.opcode in ("slice", "dynamic-slice", "gather"):
        return written + each.shapes[0].bytes * _main(operands[0])
    if each.opcode in ("dynamic-update-slice", "scatter"):
        # In place: the update is read and written, or added to what was there.
        update = operands[1 if each.opcode == "dynamic-update-slice" else -1].shapes[0].bytes
        return update * (2 if each.opcode == "dynamic-update-slice" else 3)
    if each.opcode.endswith("-start"):  # of a collective; the result names the operands again
        written = max((shape.bytes for shape in each.shapes if shape.space == 0), default=0.0)
    return written + math.fsum(shape.bytes for operand in operands for shape in operand.shapes if shape.space == 0)


def continues(collective: Instruction, computation: Computation) -> bool:
    """Whether a collective is one that another computation has started already.

    A TPU runs some beside matrix products: their start, the fusions that they run beside and their end each repeat it.
    """
    return "chain_id=" in collective.attributes and not _ends_in(computation, "AsyncCollectiveStart")


def _ends_in(computation: Computation, target: str) -> bool:
    return f'"{target}"' in computation.root.attributes


def _main(operand: Instruction) -> bool:
    return operand.shapes[0].space == 0 if operand.shapes else False


def _read(parameter: Instruction, inner: Computation, module: Module, in_main: bool) -> float:
    """Bytes of a fusion's operand that it reads: of one that is only sliced, the slices."""
    if not in_main:
        return 0.0
    whole = math.fsum(shape.bytes for shape in parameter.shapes)
    read = 0.0
    for user in inner.users.get(parameter.name, []):
        if user.opcode in ("dynamic-slice", "slice", "gather") and parameter.name == user.operands[0]:
            read += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and parameter.name == user.operands[0]:
            continue  # updated in place
        elif user.opcode == "tuple" or (user.opcode.startswith("all-") and continues(user, inner)):
            continue  # handed on
        elif user.opcode == "bitcast":
            read += _read(user, inner, module, True)
        elif user.opcode == "fusion":
            called = module.computations[user.called("calls")]
            read += math.fsum(
                _read(called.parameters[place], called, module, True)
                for place, name in enumerate(user.operands)
                if name == parameter.name
            )
        else:
            return whole
    return min(read, whole)


def _written(root: Instruction, inner: Computation) -> float:
    """Bytes that a fusion writes of one result: of one that is updated in place, the update."""
    while root.opcode == "bitcast":
        root = inner.instructions[root.operands[0]]
    if root.opcode == "parameter":  # handed on
        return 0.0
    if root.opcode == "dynamic-update-slice":
        return math.fsum(shape.bytes for shape in inner.instructions[root.operands[1]].shapes)
    return math.fsum(shape.bytes for shape in root.shapes)
