"""What one run of a compiled step does on each device: FLOPs, bytes moved, collectives, with loops' trip counts.

`compiled.cost_analysis()` counts the body of a loop once, and a model of scanned layers is mostly loops.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from mimic_jax.planning.hlo import Computation, Instruction, Module, Shape, parse, replica_groups, source_target_pairs
from mimic_jax.planning.traffic import continues, moved
from mimic_jax.planning.trips import trip_count

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Matrix products by a library of the GPU's maker.
_GEMMS = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8")
# Custom calls of TPUs and CPUs without matrix products in them.
_WITHOUT_PRODUCTS = {
    *(
        "AsyncCollectiveStart",
        "AsyncCollectiveDone",
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "ConcatBitcast",
        "GatherScatterIndicesBitpacked",
        "TopK",
    ),
    *("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "X64Combine", "X64SplitLow", "X64SplitHigh"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of collective over some axes of the mesh. kind: as HLO has it. axes: names, in the mesh's order."""

    kind: str
    axes: tuple[str, ...]


@dataclasses.dataclass
class Counts:
    """On one device, in one run.

    flops: of matrix products (dots and convolutions), by the operands' element type. Two a multiply-add.
    bytes: read from and written to main memory by instructions, each operand and result once an instruction.
    sent: bytes that each device sends at the least (see `sent_bytes`).
    unknown: what could not be counted, and how often it is run: custom calls, loops whose length is not known.
    """

    flops: Counter
    bytes: float
    sent: Counter
    unknown: Counter

    @classmethod
    def zero(cls) -> "Counts":
        return cls(Counter(), 0.0, Counter(), Counter())

    def add(self, other: "Counts", times: int = 1) -> None:
        """Adds what is done `times` times."""
        self.bytes += times * other.bytes
        for ours, theirs in (
            (self.flops, other.flops),
            (self.sent, other.sent),
            (self.unknown, other.unknown),
        ):
            for key, value in theirs.items():
                ours[key] += times * value


def count(text: str, mesh: dict[str, int]) -> Counts:
    """Counts what an optimised module does.

    Args:
      text: of the compiled step.
      mesh: sizes of the mesh's axes by name, in its order; partition i is its i-th device, row-major.

    Raises:
      ValueError: the text is no HLO that is known here.
    """
    module = parse(text)
    known: dict[tuple[str, bool], Counts] = {}

    def of(name: str, fused: bool) -> Counts:
        if (name, fused) not in known:
            total, computation = Counts.zero(), module.computations[name]
            for each in computation.instructions.values():
                _add_instruction(total, each, computation, module, mesh, of, fused)
            known[name, fused] = total
        return known[name, fused]

    return of(module.entry, False)


def sent_bytes(kind: str, operand_bytes: float, members: int) -> float:
    """What each of `members` devices sends at the least, in bytes (Chan et al. 2007, "Collective communication").

    A ring sends exactly so much: an all-reduce is a reduce-scatter and an all-gather.
    """
    others = (members - 1) / members
    return {
        "all-reduce": 2 * others * operand_bytes,
        "all-gather": others * members * operand_bytes,
        "reduce-scatter": others * operand_bytes,
        "all-to-all": others * operand_bytes,
        "collective-permute": operand_bytes,
    }[kind]


def _add_instruction(
    total: Counts,
    each: Instruction,
    computation: Computation,
    module: Module,
    mesh: dict[str, int],
    of: Callable[[str, bool], Counts],
    fused: bool,
) -> None:
    kind = each.opcode.removesuffix("-start")
    if each.opcode == "while":
        times = trip_count(each, computation, module)
        if times is None:
            total.unknown["a loop of unknown length, counted once"] += 1
        for part in ("body", "condition"):
            total.add(of(each.called(part), fused), 1 if times is None else times)
    elif each.opcode in ("call", "async-start"):
        total.add(of(each.called("to_apply" if each.opcode == "call" else "calls"), fused))
    elif each.opcode == "conditional":
        branches = each.attribute("branch_computations") or " ".join(
            each.called(name) for name in ("true_computation", "false_computation")
        )
        counted = [of(name, fused) for name in branches.replace("%", " ").strip("{} ").replace(",", " ").split()]
        total.add(max(counted, key=lambda branch: (sum(branch.flops.values()), branch.bytes)))
    elif each.opcode == "fusion":
        inner = of(each.called("calls"), True)
        if each.called("calls").startswith("all-reduce-scatter"):  # a TPU's: the sum, of which each keeps its part
            inner = dataclasses.replace(inner, sent=_scattered(inner.sent))
        total.add(inner)
    elif each.opcode in ("dot", "convolution"):
        first = _shape(each.operands[0], computation)
        total.flops[first.dtype] += (_dot_flops if each.opcode == "dot" else _convolution_flops)(each, computation)
    elif each.opcode == "custom-call":
        _add_custom_call(total, each, computation)
    elif kind in COLLECTIVES and not continues(each, computation):
        _add_collective(total, kind, each, computation, mesh)
    if not fused:
        total.bytes += moved(each, computation, module)


def _add_collective(total, kind, each, computation, mesh) -> None:
    members = source_target_pairs(each) if kind == "collective-permute" else replica_groups(each)
    if members.size and members.shape[1] > 1:
        operand_bytes = sum(shape.bytes for name in each.operands for shape in computation.instructions[name].shapes)
        if axes := _axes(members, mesh):
            total.sent[Collective(kind, axes)] += sent_bytes(kind, operand_bytes, members.shape[1])


def _axes(groups: Int[np.ndarray, "groups members"], mesh: dict[str, int]) -> tuple[str, ...]:
    """The axes along which members of a group differ."""
    places = np.array(np.unravel_index(groups, tuple(mesh.values())))
    differs = (places != places[:, :, :1]).any((1, 2))
    return tuple(name for name, varies in zip(mesh, differs, strict=True) if varies)


def _scattered(sent: Counter) -> Counter:
    return Counter(
        {
            Collective("reduce-scatter", key.axes) if key.kind == "all-reduce" else key: (
                value / 2 if key.kind == "all-reduce" else value
            )
            for key, value in sent.items()
        }
    )


def _dot_flops(each: Instruction, computation: Computation) -> int:
    first = _shape(each.operands[0], computation)
    contracted = math.prod(first.dims[axis] for axis in each.numbers("lhs_contracting_dims"))
    return 2 * each.shapes[0].elements * contracted


def _convolution_flops(each: Instruction, computation: Computation) -> int:
    """2 × the multiply-adds, of which none meets padding or the holes of a dilated operand.

    A TPU has every product as a convolution, batched ones as padded and dilated windows over the batch.
    """
    first, second = (_shape(name, computation) for name in each.operands[:2])
    first_labels, second_labels, labels = each.attribute("dim_labels").replace("->", "_").split("_")
    window = {name: value.split("x") for name, value in _window(each).items()}
    groups = int(each.attribute("feature_group_count") or 1) * int(each.attribute("batch_group_count") or 1)
    products = first.dims[first_labels.index("b")] * first.dims[first_labels.index("f")] // groups
    products *= second.dims[second_labels.index("o")]
    for axis in range(len(labels) - 2):
        given = {name: value[axis] for name, value in window.items()}
        products *= _valid_places(
            first.dims[first_labels.index(str(axis))],
            second.dims[second_labels.index(str(axis))],
            each.shapes[0].dims[labels.index(str(axis))],
            given,
        )
    return 2 * products


def _window(each: Instruction) -> dict[str, str]:
    return dict(part.split("=") for part in (each.attribute("window") or "{}").strip("{}").split())


def _valid_places(size: int, kernel: int, outputs: int, window: dict[str, str]) -> int:
    """How many pairs of output and kernel places of one axis read a true place of the input."""
    stride, dilation, hole = (int(window.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - low
    return int(((places >= 0) & (places % hole == 0) & (places // hole < size)).sum())


def _add_custom_call(total, each, computation) -> None:
    target = (each.attribute("custom_call_target") or "").strip('"')
    if target in _GEMMS:
        config = json.loads(each.attributes[each.attributes.index("backend_config=") + len("backend_config=") :])
        dims = config.get("gemm_backend_config", config)["dot_dimension_numbers"]["lhs_contracting_dimensions"]
        first = _shape(each.operands[0], computation)
        total.flops[first.dtype] += 2 * each.shapes[0].elements * math.prod(first.dims[int(axis)] for axis in dims)
    elif target not in _WITHOUT_PRODUCTS:
        total.unknown[f"custom call {target}, whose FLOPs are not known"] += 1


def _shape(name: str, computation: Computation) -> Shape:
    return computation.instructions[name].shapes[0]
