"""MIMIC's released pairs as NumPy writes them; a file made to run code runs none."""

import contextlib
import copyreg
import csv
import io
import os
import pickle
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import sources
from data_prep.settings import Settings
from data_prep.sources import integer_dict, mimic_release
from data_prep.sources.scene import SceneProblem
from mimic_jax.command import InputError

READY = Settings("name", source="mimic_release", policy="ready")
HEADER = b"\x93NUMPY\x01\0\x76\0" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"


def jpeg(seed, size=32):
    image = cv2.resize(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8), (size, size))
    return cv2.imencode(".jpg", image)[1].tobytes()


def write_pair(folder, seed=0, matches=None):
    folder.mkdir(parents=True)
    (folder / "0000.jpg").write_bytes(jpeg(2 * seed))
    (folder / "0001.jpg").write_bytes(jpeg(2 * seed + 1))
    np.save(folder / "corresponding.npy", {0: seed, 195: 7 + seed} if matches is None else matches)


def as_array(matches):
    result = np.full(196, -1)
    for patch, other in matches.items():
        result[patch] = other
    return result


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    for seed, pair in enumerate(("A/s9/2", "A/s9/10", "A/s10/0", "B/x y/é\n-1")):
        write_pair(folder / pair, seed)
    return folder


def by_name(scenes):
    return {scene.name: scene for scene in scenes}


def reasons(scene):
    return [pair.problem for pair in scene.samples()]


def check_release(scenes):
    assert [scene.name for scene in scenes] == ["A/s9", "A/s10", "B/x y"]
    assert [(scene.source, scene.input_size) for scene in scenes] == [("A", 2), ("A", 1), ("B", 1)]
    seeds = iter(range(4))
    for scene in scenes:
        for pair in pickle.loads(pickle.dumps(scene.samples))():
            seed = next(seeds)
            assert pair.problem is None
            assert (pair.view1, pair.view2) == (jpeg(2 * seed), jpeg(2 * seed + 1))
            assert pair.correspondence.dtype == np.int16
            assert np.array_equal(pair.correspondence, as_array({0: seed, 195: 7 + seed}))
            assert (pair.frame1, pair.frame2) == (-1, -1)
    assert next(seeds, None) is None


def test_a_folder_of_datasets(release):
    check_release(mimic_release.scenes(release, READY))


def test_a_dataset_a_scene_and_here(release, monkeypatch):
    assert list(by_name(mimic_release.scenes(release / "A", READY))) == ["A/s9", "A/s10"]
    assert list(by_name(mimic_release.scenes(release / "A" / "s9", READY))) == ["A/s9"]
    monkeypatch.chdir(release / "A")
    (scene, _) = mimic_release.scenes(type(release)("."), READY)
    assert (scene.name, scene.source) == ("A/s9", "A")


def write_csv(path, rows, header=("", "path1", "path2"), **options):
    with path.open("w", newline="", **options) as file:
        csv.writer(file).writerows([header, *rows])
    return path


PAIRS = ("A/s9/10", "B/x y/é\n-1", "A/s10/0", "A/s9/2")


@pytest.mark.parametrize("root", ["", "/home/someone/data/mimic/", "C:/mimic/", "s3://bucket/", "../elsewhere/.."])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_of_some_other_machine(release, root, encoding):
    rows = [(n, f"{root}{pair}/0000.jpg", f"{root}{pair}/0001.jpg") for n, pair in enumerate(PAIRS)]
    path = write_csv(release / "pairs.csv", rows, encoding=encoding)
    if ".." in root:
        with pytest.raises(InputError, match="no pairs in it"):
            mimic_release.scenes(path, READY)
    else:
        check_release(mimic_release.scenes(path, READY))


def test_a_csv_beside_pairs_elsewhere_and_a_column_of_correspondences(release, tmp_path):
    np.save(release / "A" / "s9" / "2" / "other.npy", {3: 4})
    rows = [[f"{release}/{pair}/{name}" for name in ("other.npy", "0001.jpg", "0000.jpg")] for pair in PAIRS]
    (tmp_path / "far").mkdir()
    path = write_csv(tmp_path / "far" / "pairs.CSV", rows, ("correspondence", "path2", "path1"))
    scene = mimic_release.scenes(path, READY)[0]
    given_, missing = scene.samples()
    assert given_.view1 == jpeg(0)
    assert np.array_equal(given_.correspondence, as_array({3: 4}))
    assert missing.problem == "corresponding.npy cannot be opened (No such file or directory)"


def test_rows_that_are_no_pairs_are_counted(release):
    good = ["A/s10/0/0000.jpg", "A/s10/0/0001.jpg"]
    path = write_csv(
        release / "pairs.csv",
        [
            good,
            good,
            ["A/s10/gone/0000.jpg", "A/s10/gone/0001.jpg"],
            [good[0], "A/../../secret/0001.jpg"],
            [good[0]],
            ["A/../s10/0/0000.jpg", good[1]],
            ["/0000.jpg", "/0001.jpg"],
            ["", ""],
            ["A//0/0000.jpg", good[1]],
            ["1" * 5000 + "/s/0/0000.jpg", good[1]],
            ["A/s/0/\0.jpg", good[1]],
        ],
        ("path1", "path2"),
    )
    with path.open("ab") as file:
        file.write(b"A/\xff/0/0000.jpg,x\n\n" + b"9" * 200_000 + b'\n"unclosed')
    scenes = by_name(mimic_release.scenes(path, READY))
    assert list(scenes) == ["A/s10", "pairs.csv/"]
    assert reasons(scenes["A/s10"]).count(None) == 1
    assert sorted(filter(None, reasons(scenes["A/s10"]))) == [
        "image cannot be opened (No such file or directory)",
        "row does not name a pair",
        "row does not name a pair",
        "row given twice",
    ]
    bad = reasons(scenes["pairs.csv/"])
    assert set(bad) == {"row does not name a pair"}
    # The line of 200 000 digits is read in four pieces.
    assert len(bad) == scenes["pairs.csv/"].input_size == 6 + 1 + 4 + 1


def test_a_csv_that_cannot_be_used(tmp_path):
    for content, message in (
        (b"", "has no column path1 or path2"),
        (b"path1,path\n", "has no column path2"),
        (b"\xff\xfe\0\0" * 9, "has no column"),
        (b"path1,path2\n", "no pairs"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(InputError, match=message):
            mimic_release.scenes(tmp_path / "a.csv", READY)
    (tmp_path / "a.txt").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("a.txt", "gone", "gone.csv", "pipe.csv"):
        with pytest.raises(InputError, match=f"{name}: --source=mimic_release needs"):
            mimic_release.scenes(tmp_path / name, READY)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([b"A/s/0/0000.jpg", b",", b"\n", b'"', b"\r", b"\0", b"\xff", b"..", b"/", b"1"])))
def test_any_csv_is_listed_whole(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(b"path1,path2\nD/s/0/0000.jpg,D/s/0/0001.jpg\n" + b"".join(pieces))
    scenes = mimic_release.scenes(path, READY)
    for scene in scenes:
        listed = list(scene.samples())
        assert len(listed) == scene.input_size
        assert all(pair.problem for pair in listed)


def test_a_row_costs_eight_bytes(tmp_path):
    rows = [(f"/machine/A/{n % 10}/{n}/0000.jpg", f"/machine/A/{n % 10}/{n}/0001.jpg") for n in range(10_000)]
    for scene in mimic_release.scenes(write_csv(tmp_path / "a.csv", rows, ("path1", "path2")), READY):
        assert scene.input_size == 1000
        assert len(pickle.dumps(scene)) < 8 * 1000 + 2000


def test_damaged_pairs_are_counted(release):
    scene = release / "A" / "s9"
    for number in range(11, 20):
        write_pair(scene / str(number))
    (scene / "11" / "0001.jpg").unlink()
    (scene / "12" / "0000.jpg").write_bytes(jpeg(0)[:-30])
    (scene / "13" / "corresponding.npy").unlink()
    (scene / "14" / "corresponding.npy").write_bytes(b"")
    (scene / "15" / "corresponding.npy").unlink()
    os.mkfifo(scene / "15" / "corresponding.npy")
    np.save(scene / "16" / "corresponding.npy", {0: 196})
    np.save(scene / "17" / "corresponding.npy", {0: 5, 1: 5})
    with (scene / "18" / "corresponding.npy").open("wb") as file:
        file.truncate(2**40)
    (scene / "19" / "0000.jpg").unlink()
    (scene / "19" / "0000.jpg").mkdir()
    (scene / "empty").mkdir()
    read = by_name(mimic_release.scenes(release, READY))["A/s9"]
    missing = "image cannot be opened (No such file or directory)"
    assert reasons(read) == [
        None,
        None,
        missing,
        "image cannot be decoded",
        None,
        "corresponding.npy is not a dict of integers",
        "corresponding.npy is not a regular file",
        "corresponding.npy names patches that there are not",
        "corresponding.npy gives a patch of view 2 twice",
        "corresponding.npy is too large",
        "not a regular file",
        missing,
    ]
    assert list(read.samples())[4].correspondence is None
    tested = Settings("name", source="mimic_release", policy="tested", image_size=128)
    read = by_name(mimic_release.scenes(release, tested))["A/s9"]
    assert sum(pair.problem is None for pair in read.samples()) == 8
    assert all(pair.correspondence is None for pair in read.samples())


def test_other_patches_than_those_of_the_release(release):
    settings = Settings("name", source="mimic_release", policy="ready", image_size=256)
    with pytest.raises(InputError, match=r"--image_size=256 --patch_size=16: .* --policy=tested"):
        mimic_release.scenes(release, settings)


def test_folders_that_are_no_scenes(release):
    (release / "A" / "nothing" / "deep").mkdir(parents=True)
    (release / "A" / "s10" / "loop").symlink_to(release)
    (release / "loop").symlink_to(release / "loop")
    (release / ".hidden").mkdir()
    shutil.move(release / "B", os.fsencode(release) + b"/\xff")
    scenes = by_name(sources.scenes(release, READY))
    assert list(scenes) == ["A/nothing/deep/", "A/s9", "A/s10", "\\xff/x y"]
    with pytest.raises(SceneProblem, match="no pairs"):
        list(scenes["A/nothing/deep/"].samples())
    # A link to a folder stands where a pair should.
    assert len(list(scenes["A/s10"].samples())) == 2
    assert len(list(scenes["\\xff/x y"].samples())) == 1
    with pytest.raises(InputError, match="no pairs in it"):
        mimic_release.scenes(release / "A" / "nothing", READY)
    write_pair(release / "more" / "A" / "s9" / "0")
    with pytest.raises(InputError, match="would both be scene 'A/s9'"):
        mimic_release.scenes(release, READY)


def test_a_folder_without_permission(release):
    (release / "A" / "s9").chmod(0)
    try:
        if os.access(release / "A" / "s9", os.R_OK):
            pytest.skip("permissions do not bind this user: root?")
        scenes = by_name(mimic_release.scenes(release, READY))
    finally:
        (release / "A" / "s9").chmod(0o700)
    with pytest.raises(SceneProblem, match="folder cannot be read"):
        list(scenes["A/s9/"].samples())


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
