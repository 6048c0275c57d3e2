"""A dict of integers out of a pickle, by itself or saved as an .npy, without unpickling.

The opcodes are taken one by one by Python's own disassembler, which runs nothing, and are acted on here. Nothing that a
file names is looked up, imported or called: of the few names that NumPy writes into such a file each stands for itself,
and everything else is refused.
"""

import dataclasses
import enum
import pickletools
import re
import struct

# A dict of 4096 NumPy integers, 64 × 64 patches, in the longest of the protocols has 0.8 MB.
MAX_BYTES = 2**20

# What np.save writes before the pickle of a dict: an array of one object and no dimensions.
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\0..|[\x02\x03]\0....)\{'descr': '\|O[48]?', 'fortran_order': False, 'shape': \(\), \} *\n", re.S
)
_ITEM_SIZES = {f"{kind}{size}": size for kind in "iu" for size in (1, 2, 4, 8)}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_STRINGS = frozenset({
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"
})  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(enum.Enum):
    ARRAY_MAKER = enum.auto()
    ARRAY = enum.auto()
    DTYPE = enum.auto()
    INTEGER = enum.auto()
    ENCODE = enum.auto()


_NAMES = {
    "numpy._core.multiarray _reconstruct": _Name.ARRAY_MAKER,
    "numpy.core.multiarray _reconstruct": _Name.ARRAY_MAKER,
    "numpy._core.multiarray scalar": _Name.INTEGER,
    "numpy.core.multiarray scalar": _Name.INTEGER,
    "numpy ndarray": _Name.ARRAY,
    "numpy dtype": _Name.DTYPE,
    "_codecs encode": _Name.ENCODE,
}


@dataclasses.dataclass(frozen=True)
class _DType:
    code: str


@dataclasses.dataclass(eq=False)
class _Array:
    content: dict[int, int] | None = None


def load(data: bytes) -> dict[int, int]:
    """The dict in the bytes of a file that np.save or pickle.dump has written; keys and values are Python's integers.

    Raises:
      ValueError: the file holds anything but a dict of integers, Python's or NumPy's, or gives a key twice.
    """
    if len(data) > MAX_BYTES:
        raise ValueError("not a dict of integers: too large")
    header = _NPY.match(data)
    try:
        result = _result(data[header.end() :] if header else data)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ValueError("not a dict of integers") from error
    if isinstance(result, _Array):
        result = result.content
    if not isinstance(result, dict):
        raise ValueError("not a dict of integers")
    return result


def _result(pickled: bytes) -> object:
    stack, marks, memo = [], [], {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in _INTEGERS or name in _STRINGS:
            stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(_NAMES[argument])
        elif name == "STACK_GLOBAL":
            module, attribute = _taken(stack, 2)
            # No other type: to look up a tuple would hash it, which takes for ever on one made to.
            if not (isinstance(module, str) and isinstance(attribute, str)):
                raise ValueError("a name that is none")
            stack.append(_NAMES[f"{module} {attribute}"])
        elif name == "REDUCE":
            stack.append(_called(*_taken(stack, 2)))
        elif name == "BUILD":
            _build(stack[-2], stack.pop())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        elif name in _TUPLES:
            stack.append(tuple(_taken(stack, _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_marked(stack, marks)))
        elif name == "LIST":
            stack.append(_marked(stack, marks))
        elif name == "DICT":
            stack.append(_filled({}, _marked(stack, marks)))
        elif name in ("APPEND", "APPENDS"):
            items = _marked(stack, marks) if name == "APPENDS" else _taken(stack, 1)
            if not isinstance(stack[-1], list):
                raise ValueError("no list to append to")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _marked(stack, marks) if name == "SETITEMS" else _taken(stack, 2)
            _filled(stack[-1], items)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name}")
    raise ValueError("no end")


def _taken(stack: list, count: int) -> list:
    if len(stack) < count:
        raise ValueError("nothing on the stack")
    items = stack[-count:]
    del stack[-count:]
    return items


def _marked(stack: list, marks: list[int]) -> list:
    mark = marks.pop()
    items = stack[mark:]
    del stack[mark:]
    return items


def _filled(target: object, items: list) -> dict[int, int]:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("no dict to fill")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # bool is a subclass of int.
        if type(key) is not int or type(value) is not int or key in target:
            raise ValueError("a key or value that is no integer, or a key given twice")
        target[key] = value
    return target


def _called(function: object, arguments: object) -> object:
    """What NumPy's own functions would make, for the calls that NumPy writes."""
    match function, arguments:
        case _Name.ENCODE, (str(text), "latin1"):
            return text.encode("latin1")
        case _Name.DTYPE, (str(code), _, _):
            return _DType(code)
        case _Name.ARRAY_MAKER, (_Name.ARRAY, (0,), b"b" | "b"):
            return _Array()
        case _Name.INTEGER, (_DType(code), bytes(raw)) if len(raw) == _ITEM_SIZES.get(code):
            return int.from_bytes(raw, "little", signed=code.startswith("i"))
    raise ValueError("a call of something else")


def _build(target: object, state: object) -> None:
    match target, state:
        # The version, then the byte order.
        case _DType(), (_, "<" | "|", *_):
            return
        case _Array(), (_, (), _DType(), _, [dict(content)]):
            target.content = content
            return
    raise ValueError("a state of something else")
