"""`corresponding.npy` as NumPy writes it, in every protocol of pickle; a file made to run code runs none."""

import contextlib
import copyreg
import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import integer_dict, mimic_release

HEADER = b"\x93NUMPY\x01\0\x76\0" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"


def as_array(matches):
    result = np.full(196, -1)
    for patch, other in matches.items():
        result[patch] = other
    return result


def saved(matches, protocol, old_names=False, bare=False):
    """The bytes of `corresponding.npy` in each protocol of pickle; np.save has used 2, 3 and 4 in its time."""
    data = pickle.dumps(matches if bare else np.array(matches, object), protocol)
    if old_names:
        data = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return data if bare else HEADER + data


integers = st.sampled_from([int, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])


def test_the_header_here_is_what_numpy_writes(tmp_path):
    np.save(tmp_path / "a.npy", {1: 2})
    assert (tmp_path / "a.npy").read_bytes().startswith(HEADER)


@settings(max_examples=500)
@given(
    st.dictionaries(st.integers(0, 127), st.integers(0, 127)),
    integers,
    integers,
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)
def test_any_dict_of_integers_is_read(matches, key, value, protocol, old_names, bare):
    data = saved({key(k): value(v) for k, v in matches.items()}, protocol, old_names, bare)
    found = integer_dict.load(data)
    assert found == matches
    assert all(type(number) is int for item in found.items() for number in item)


def test_large_and_negative_integers():
    matches = {-1: 2**62, 255: -(2**40), 256: 65535, 65536: -(2**31), 10**30: 0}
    for protocol in range(6):
        assert integer_dict.load(saved(matches, protocol)) == matches
        numpys = {np.int64(-5): np.uint64(2**64 - 1), np.int8(-128): np.int16(-32768)}
        assert integer_dict.load(saved(numpys, protocol)) == numpys


NO_DICTS = [
    [],
    None,
    {0: 1.0},
    {0: True},
    {False: 1},
    {0: None},
    {"0": 1},
    {0: [1]},
    {(0,): 1},
    {0: {1: 2}},
    [{0: 1}],
    {0: np.float64(1)},
    {0: np.bool_(1)},
    {0: np.array(1)},
    {0: np.datetime64(0, "s")},
    {0: 1 + 0j},
    {0},
    b"0",
]


@pytest.mark.parametrize("content", NO_DICTS, ids=repr)
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("bare", [False, True])
def test_what_is_no_dict_of_integers(content, protocol, bare):
    array = np.empty((), object)
    array[()] = content
    data = pickle.dumps(content if bare else array, protocol)
    with pytest.raises(ValueError, match=r"^not a dict of integers"):
        integer_dict.load(data if bare else HEADER + data)


def test_numbers_saved_as_an_array_are_none(tmp_path):
    for array in (np.arange(196), np.array([{0: 1}]), np.array([[0, 1]], object), np.zeros((), "i4,i4")):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=r"^not a dict of integers"):
            integer_dict.load((tmp_path / "a.npy").read_bytes())


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def attacks(canary):
    """Pickles that make a file when they are unpickled, by every road there is: name, bytes."""
    shell, code = f"touch '{canary}'", f"open({str(canary)!r}, 'w').close()"
    calls = {
        "os.system": Calls(os.system, shell),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "memmap": Calls(np.memmap, str(canary), "u1", "w+", 0, (1,)),
        "numpy.save": Calls(np.save, f"{canary}.npy", 1),
        "open": Calls(open, str(canary), "w"),
        "load": Calls(pickle.loads, pickle.dumps(Calls(os.system, shell))),
        "map": Calls(list, Calls(map, os.system, [shell])),
    }
    for protocol in range(6):
        for name, call in calls.items():
            array = np.empty((), object)
            for place, content in (("", call), (" as value", {0: call}), (" in a list", [{0: 1}, call])):
                array[()] = content
                yield f"{name}{place} {protocol}", pickle.dumps(content, protocol)
                yield f"{name}{place} {protocol} in an array", HEADER + pickle.dumps(array, protocol)
    whole = pickle.dumps({0: 1}, 2)[:-1]
    system = b"cos\nsystem\n"
    memmap = text(str(canary)) + text("u1") + text("w+") + b"K\x00K\x01\x85"
    raw = {
        "GLOBAL REDUCE": system + b"(" + text(shell) + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(shell) + b"\x85R.",
        "dotted name": b"\x80\x04" + text("os") + text("system.__call__") + b"\x93" + text(shell) + b"\x85R.",
        "INST": b"(" + text(shell) + b"ios\nsystem\n.",
        "OBJ": b"(" + system + text(shell) + b"o.",
        "after the dict": whole + b"0" + system + text(shell) + b"\x85R0" + whole[2:] + b".",
        "before the dict": b"\x80\x02" + system + text(shell) + b"\x85R0" + whole[2:] + b".",
        "memo": system + b"q\x000h\x00" + text(shell) + b"\x85R.",
        "BUILD of a __setstate__": (
            b"\x80\x02ctypes\nSimpleNamespace\n)\x81}" + text("__setstate__") + system + b"sb" + text(shell) + b"b."
        ),
        "NEWOBJ": b"\x80\x02cnumpy\nmemmap\n(" + memmap + b"t\x81.",
        "NEWOBJ_EX": b"\x80\x04cnumpy\nmemmap\n(" + memmap + b"t}\x92.",
        "subprocess": b"\x80\x02csubprocess\ncall\n" + text("touch") + text(str(canary)) + b"\x86\x85R.",
        "dtype by a hostile type": b"cnumpy.core.multiarray\n_reconstruct\n(" + system + b"K\x00\x85C\x01btR.",
        "numpy.testing": b"cnumpy.testing\nrunstring\n" + text(code) + b"}\x86R.",
        "EXT": b"\x80\x02\x82\xf0" + text(shell) + b"\x85R.",
    }
    for name, data in raw.items():
        yield name, data
        yield f"{name} in an array", HEADER + data
    for descr in (f"__import__('os').system({shell!r})", f"[('a', {code})]"):
        header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (), }}\n".encode()
        yield descr, b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + whole + b"."


# NumPy refuses these as well.
NEVER_FIRE = ("dtype by a hostile type", "__import__", "[('a'")


def test_nothing_in_a_file_is_ever_run(tmp_path):
    """Every attack is first shown to work on Python's own unpickler, or the test would prove nothing."""
    canary = tmp_path / "canary"
    copyreg.add_extension("os", "system", 0xF0)
    try:
        count = 0
        for name, data in attacks(canary):
            with contextlib.suppress(Exception):
                pickle.loads(data.removeprefix(HEADER))
            assert any(tmp_path.iterdir()) or name.startswith(NEVER_FIRE), name
            for file in tmp_path.iterdir():
                file.unlink()
            with pytest.raises(ValueError, match=r"^not a dict of integers"):
                integer_dict.load(data)
            path = tmp_path / "corresponding.npy"
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"^corresponding.npy is not a dict of integers$"):
                mimic_release.correspondence(path, 196)
            path.unlink()
            assert not any(tmp_path.iterdir()), name
            count += 1
        assert count > 300
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_files_made_to_take_for_ever_or_all_memory():
    nested = b"".join([b"\x80\x02)", b"2\x86" * 5000])
    for data in (
        # Tuples of themselves, 2^5000 deep, as a key, a name, an argument and a state.
        nested + b"}q\x000}h\x00s.",
        b"\x80\x02}" + nested[2:] + b"K\x00s.",
        b"\x80\x04" + nested[2:] + b"2\x93.",
        b"\x80\x02cnumpy\ndtype\n" + nested[2:] + b"R.",
        b"\x80\x02cnumpy\ndtype\n" + text("i8") + b"K\x00K\x01\x87R" + nested[2:] + b"b.",
        # Lengths, and places in the memo, of gigabytes.
        b"\x80\x04}r\xff\xff\xff\x7fK\x00\x8e" + b"\xff" * 7 + b"\x7f" + b"x" * 99,
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x00" + b"x",
        b"\x8b\xff\xff\xff\x7f" + b"9" * 99,
        # A million opcodes that lead nowhere.
        b"(" * (2**20 - 1),
        b"]" * (2**20 - 1) + b".",
        b"\x80\x02]" + b"2a" * 500_000 + b".",
        b"L" + b"9" * 500_000 + b"L\n.",
        b"\x80\x02" * 2**20,
        HEADER,
        HEADER[:50],
        b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b"(" * 500_000,
    ):
        with pytest.raises(ValueError, match=r"^not a dict of integers"):
            integer_dict.load(data)


VALID = [
    saved(matches, protocol, old, bare)
    for matches in ({0: 1, 2: 300}, {np.int64(3): np.int64(4), np.int64(5): np.int64(6)})
    for protocol in range(6)
    for old in (False, True)
    for bare in (False, True)
]
WORDS = [
    b"cos\nsystem\n",
    b"(",
    b"t",
    b"R",
    b"b",
    b"\x93",
    b"\x81",
    b"o",
    b"h\x00",
    b"q\x01",
    b"\x85",
    b".",
    b"}",
    b"s",
    b"u",
]
edit = st.tuples(
    st.sampled_from(["set", "insert", "remove", "splice"]),
    st.integers(0, 2000),
    st.sampled_from(WORDS) | st.binary(max_size=4),
)


def load_or_refuse(data):
    try:
        found = integer_dict.load(data)
    except ValueError:
        return
    assert all(type(number) is int for item in found.items() for number in item)


@settings(max_examples=3000)
@given(st.integers(0, len(VALID) - 1), st.lists(edit, max_size=5))
def test_damaged_files(which, edits):
    data = bytearray(VALID[which])
    for kind, place, content in edits:
        place %= len(data) + 1
        if kind == "set":
            data[place : place + len(content)] = content
        elif kind == "insert":
            data[place:place] = content
        elif kind == "remove":
            del data[place : place + len(content)]
        else:
            other = VALID[place % len(VALID)]
            data[place:] = other[place % len(other) :]
    load_or_refuse(bytes(data))


@settings(max_examples=1500)
@given(st.booleans(), st.lists(st.sampled_from(WORDS) | st.binary(max_size=6)))
def test_random_bytes(with_header, pieces):
    load_or_refuse((HEADER if with_header else b"") + b"".join(pieces))


def test_numpy_agrees_on_what_it_reads(tmp_path):
    rng = np.random.default_rng(0)
    for size in (0, 1, 147, 196):
        matches = dict(zip(rng.permutation(196)[:size], rng.permutation(196)[:size], strict=True))
        np.save(tmp_path / "corresponding.npy", matches)
        expected = np.load(io.BytesIO((tmp_path / "corresponding.npy").read_bytes()), allow_pickle=True).item()
        found = mimic_release.correspondence(tmp_path / "corresponding.npy", 196)
        assert np.array_equal(found, as_array(expected))
