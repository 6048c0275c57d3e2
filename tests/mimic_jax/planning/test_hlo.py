"""Reading HLO text: forms that XLA writes, against what they stand for."""

import numpy as np
import pytest

from mimic_jax.planning.hlo import parse, replica_groups, source_target_pairs
from mimic_jax.planning.trips import trip_count

SUM = "%sum (a: f32[], b: f32[]) -> f32[] {\n  %a = f32[] parameter(0)\n  %b = f32[] parameter(1)\n"
SUM += "  ROOT %c = f32[] add(%a, %b)\n}\n\n"


def collective(attributes, opcode="all-reduce"):
    text = f"HloModule m\n\n{SUM}ENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n"
    text += f"  ROOT %r = f32[8]{{0}} {opcode}(%x), channel_id=1, {attributes}, to_apply=%sum\n}}\n"
    return parse(text).computations["main"].root


# What XLA's own documentation and tests say of each form.
@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{{0,2,1}}", [[0, 2, 1]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ],
)
def test_replica_groups(written, groups):
    found = replica_groups(collective(f"replica_groups={written}, use_global_device_ids=true"))
    assert sorted(map(sorted, found.tolist())) == sorted(map(sorted, groups))


def test_a_form_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="not known"):
        replica_groups(collective("replica_groups=everybody"))
    with pytest.raises(ValueError, match="no HLO module"):
        parse("module @jit_f {}")


def test_pairs_of_a_permute():
    pairs = source_target_pairs(collective("source_target_pairs={{0,1},{1,0}}", "collective-permute"))
    np.testing.assert_array_equal(pairs, [[0, 1], [1, 0]])


# As libtpu prints shapes: tiles, and S(1) for memory on the chip.
TPU = """HloModule m, is_scheduled=true

ENTRY %main.1_spmd (p: bf16[4,128]) -> (f32[2], bf16[4,128]) {
  %p = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} parameter(0), metadata={op_name="x = (y"}
  %c = f32[2]{0:T(256)} constant({1, 2})
  ROOT %t = (f32[2]{0:T(256)}, /*index=1*/bf16[4,128]{1,0:T(8,128)(2,1)S(1)}) tuple(%c, /*index=1*/%p)
}
"""


def test_shapes_operands_and_spaces():
    main = parse(TPU).computations["main.1_spmd"]
    assert main.root.operands == ("c", "p")
    assert [(shape.dtype, shape.dims, shape.space) for shape in main.root.shapes] == [
        ("f32", (2,), 0),
        ("bf16", (4, 128), 1),
    ]
    assert main.parameters[0].shapes[0].bytes == 4 * 128 * 2


LOOP = """HloModule m

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %s = (s32[], f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4]{{0}} get-tuple-element(%s), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  ROOT %t = (s32[], f32[4]{{0}}) tuple(%next, %x)
}}

%condition (s: (s32[], f32[4])) -> pred[] {{
  %s = (s32[], f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %end = s32[] constant({end})
  ROOT %test = pred[] compare(%i, %end), direction={direction}
}}

ENTRY %main (x: f32[4], n: s32[]) -> (s32[], f32[4]) {{
  %x = f32[4]{{0}} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant({start})
  %t = (s32[], f32[4]{{0}}) tuple(%{first}, %x)
  ROOT %loop = (s32[], f32[4]{{0}}) while(%t), condition=%condition, body=%body{known}
}}
"""


@pytest.mark.parametrize(("start", "end", "step"), [(0, 24, 1), (3, 24, 1), (0, 7, 2), (5, 5, 1), (-2, 8, 5)])
@pytest.mark.parametrize("direction", ["LT", "LE"])
def test_trips_of_a_loop_without_a_note(start, end, step, direction):
    module = parse(LOOP.format(start=start, end=end, step=step, direction=direction, first="zero", known=""))
    main = module.computations["main"]
    assert trip_count(main.root, main, module) == len(range(start, end + (direction == "LE"), step))


def test_trips_as_the_compiler_wrote_them_down():
    note = ', backend_config={"known_trip_count":{"n":"12"},"known_init_step":{"init":"0","step":"1"}}'
    module = parse(LOOP.format(start=0, end=24, step=1, direction="LT", first="n", known=note))
    assert trip_count(module.computations["main"].root, module.computations["main"], module) == 12


def test_a_loop_whose_start_is_an_input_has_no_known_length():
    module = parse(LOOP.format(start=0, end=24, step=1, direction="LT", first="n", known=""))
    assert trip_count(module.computations["main"].root, module.computations["main"], module) is None
