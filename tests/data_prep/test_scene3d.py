"""Scenes out of .glb files: which, how many, the same whatever the order, and every fault counted."""

import concurrent.futures
import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import struct

import cv2
import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trimesh.visual.material import PBRMaterial

from data_prep import settings as mining_settings
from data_prep.sources import scene3d
from data_prep.sources.scene import ReadyPair, Sample, SceneProblem
from data_prep.worlds import glb
from mimic_jax.command import InputError

LEVEL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z up → y up


def room(extents=(6, 5, 3), texture=True, turn=None):
    """A closed room with a picture of noise on each wall: width, depth, height, z up; turned, y up by default."""
    half = np.array(extents) / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    vertices, uv, faces = [], [], []
    for axis in range(3):
        for side in (-1, 1):
            wall = np.insert(corners, axis, side, axis=1) * half
            faces += [[len(vertices) * 4 + k for k in triangle] for triangle in ((0, 1, 2), (0, 2, 3))]
            uv.append((corners + 1) / 2)
            vertices.append(wall)
    noise = (
        np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
        if texture
        else np.full((2, 2, 3), 255, np.uint8)
    )
    stored = io.BytesIO()
    Image.fromarray(noise.repeat(4, 0).repeat(4, 1)).save(stored, "PNG")
    visual = trimesh.visual.TextureVisuals(
        np.concatenate(uv), material=PBRMaterial(baseColorTexture=Image.open(stored))
    )
    points = np.concatenate(vertices) @ (LEVEL if turn is None else turn).T
    return trimesh.Scene(trimesh.Trimesh(points, faces, visual=visual, process=False)).export(file_type="glb")


ROOM = room()


def choose(**given):
    return mining_settings.choose("x", **({"source": "scene3d", "image_size": 64, "samples": 4} | given))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(scenes):
    return [scene.name for scene in scenes]


def equal(one, other):
    if isinstance(one, ReadyPair):
        same = (one.view1, one.view2, one.problem, one.frame1) == (
            other.view1,
            other.view2,
            other.problem,
            other.frame1,
        )
        return same and np.array_equal(one.correspondence, other.correspondence)
    return (one.tick, one.number, one.problem) == (other.tick, other.number, other.problem) and np.array_equal(
        one.image, other.image
    )


def edited(content, change):
    """A .glb whose JSON was changed by `change`."""
    length = struct.unpack("<I", content[12:16])[0]
    header = json.loads(content[20 : 20 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    rest = content[20 + length :]
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest


def needing(extension):
    return edited(ROOM, lambda header: header.update(extensionsRequired=[extension], extensionsUsed=[extension]))


def only_basis(header):
    """As the files of HM3D: pictures in an extension alone, whether or not it is called required."""
    for texture in header["textures"]:
        texture["extensions"] = {"KHR_texture_basisu": {"source": texture.pop("source")}}


def test_layouts(tmp_path):
    for name in ("00010-DBjEcHFg4oq/DBjEcHFg4oq", "00000-kfPV7w3FaU5/kfPV7w3FaU5"):
        write(tmp_path / f"train/{name}.glb", ROOM)
        for suffix in (".basis.glb", ".semantic.glb", ".semantic.txt", ".basis.navmesh", ".navmesh"):
            write(tmp_path / f"train/{name}{suffix}", b"")
    write(tmp_path / "Allensville.glb", ROOM)
    write(tmp_path / "17DRP5sb8fy/17DRP5sb8fy.glb", ROOM)
    write(tmp_path / "alone/scan.basis.glb", ROOM)
    write(tmp_path / ".hidden/scan.glb", ROOM)
    scenes = scene3d.scenes(tmp_path, choose(samples=120))
    names = [
        "17DRP5sb8fy/17DRP5sb8fy",
        "Allensville",
        "alone/scan.basis",
        "train/00000-kfPV7w3FaU5/kfPV7w3FaU5",
        "train/00010-DBjEcHFg4oq/DBjEcHFg4oq",
    ]
    assert listed(scenes) == [f"{name}/{chunk:04d}" for name in names for chunk in range(3)]
    assert {scene.input_size for scene in scenes} == {len(ROOM)}
    assert [scene.samples.args[2:4] for scene in scenes[:3]] == [(0, 50), (50, 100), (100, 120)]
    assert listed(scene3d.scenes(tmp_path / "Allensville.glb", choose(samples=50))) == ["Allensville/0000"]
    assert listed(scene3d.scenes(tmp_path, choose(samples=1)))[1] == "Allensville/0000"


def test_nothing_to_read(tmp_path):
    write(tmp_path / "labels.semantic.glb", ROOM)
    with pytest.raises(InputError, match=r"no \.glb"):
        scene3d.scenes(tmp_path, choose())
    with pytest.raises(InputError, match=r"needs a \.glb"):
        scene3d.scenes(tmp_path / "nowhere", choose())


@pytest.mark.parametrize(("policy", "count", "each"), [("panoramas", 2, 24), ("covisible", 20, 1)])
def test_samples_do_not_depend_on_chunk_order_or_process(tmp_path, policy, count, each):
    path = write(tmp_path / "a.glb", ROOM)
    write(tmp_path / "b.glb", room((5, 6, 2.8)))
    settings = choose(policy=policy, samples=50 + count)
    scenes = scene3d.scenes(tmp_path, settings)
    assert listed(scenes) == ["a/0000", "a/0001", "b/0000", "b/0001"]
    # In another process, the other file first and the chunk before last.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        elsewhere = pool.submit(_drawn, [scenes[index].samples for index in (3, 1, 0)]).result()
    here = list(scenes[1].samples())
    assert len(here) == count * each
    assert all(map(equal, here, elsewhere[1]))
    assert all(map(equal, scenes[3].samples(), elsewhere[0]))
    # One sample alone; and another seed, another file.
    alone = list(scene3d.read(path, "a", 51, 52, settings))
    assert all(map(equal, alone, here[each:]))
    again = list(scene3d.read(path, "a", 50, 50 + count, choose(policy=policy, samples=50 + count, seed=1)))
    renamed = list(scene3d.read(path, "b", 50, 50 + count, settings))
    assert not all(map(equal, here, again))
    assert not all(map(equal, here, renamed))


def _drawn(samples):
    return [list(itertools.islice(draw(), 48)) for draw in samples]


def test_panoramas_are_numbered_over_the_whole_file(tmp_path):
    path = write(tmp_path / "room.glb", ROOM)
    samples = list(scene3d.read(path, "room", 2, 4, choose()))
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.tick for sample in samples] == [sample.number for sample in samples] == list(range(48, 96))
    images = [sample.image for sample in samples if sample.image is not None]
    assert len(images) > 40
    assert all(image.shape == (64, 64, 3) for image in images)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float) for image in images]
    # What blurring along both axes' second differences would leave of a blank wall: OpenCV's kernel written out.
    for view in grey:
        padded = np.pad(view, 1, "reflect")
        laplacian = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2] - 4 * padded[1:-1, 1:-1]
        assert laplacian.var() >= 1000


def test_blank_views_and_places_without_room_are_counted(tmp_path):
    bare = write(tmp_path / "bare.glb", room(texture=False))
    samples = list(scene3d.read(bare, "bare", 0, 2, choose()))
    assert [(sample.image, sample.problem) for sample in samples] == [(None, "blank view")] * 48
    shaft = write(tmp_path / "shaft.glb", room((0.6, 0.6, 3)))
    samples = list(scene3d.read(shaft, "shaft", 0, 2, choose()))
    assert [(sample.tick, sample.image, sample.problem) for sample in samples] == [
        (0, None, "no place found"),
        (24, None, "no place found"),
    ]


def test_covisible_pairs(tmp_path):
    path = write(tmp_path / "room.glb", ROOM)
    settings = choose(policy="covisible", patch_size=8, quality=95)
    pairs = list(scene3d.read(path, "room", 10, 30, settings))
    assert [(pair.frame1, pair.frame2) for pair in pairs] == [(2 * k, 2 * k + 1) for k in range(10, 30)]
    kept = [pair for pair in pairs if pair.problem is None]
    assert kept
    assert {pair.problem for pair in pairs if pair.problem} == {"co-visibility too low"}
    assert all(pair.view1 == pair.view2 == b"" for pair in pairs if pair.problem)
    for pair in kept:
        for view in (pair.view1, pair.view2):
            assert cv2.imdecode(np.frombuffer(view, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
        assert pair.correspondence.shape == (64,)
        matched = pair.correspondence[pair.correspondence >= 0]
        assert len(matched) > 5
        assert len(set(matched)) == len(matched)
        assert matched.max() < 64
    coarse = list(scene3d.read(path, "room", 10, 30, choose(policy="covisible", patch_size=8, quality=30)))
    assert sum(len(pair.view1) for pair in coarse) < 0.6 * sum(len(pair.view1) for pair in pairs)


def test_z_up_and_y_up_files_of_one_room_give_the_same_views(tmp_path):
    # The level directions of each are the other two axes in cyclic order, so x, y, z becomes z, x, y.
    cyclic = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    upright = write(tmp_path / "y.glb", room(turn=cyclic))
    scan = write(tmp_path / "z.glb", room(turn=np.eye(3)))
    views = [
        list(scene3d.read(path, "room", 0, 1, choose(up=up, image_size=64)))
        for path, up in ((upright, "y"), (scan, "z"))
    ]
    for one, other in zip(*views, strict=True):
        assert (one.image is None) == (other.image is None)
        if one.image is not None:
            assert np.abs(one.image.astype(int) - other.image).mean() < 1
    # Lying on its side, the room shows something else.
    wrong = list(scene3d.read(scan, "room", 0, 1, choose(up="y", image_size=64)))
    both = [(one.image, other.image) for one, other in zip(wrong, views[1], strict=True)]
    both = [(one.astype(int), other) for one, other in both if one is not None and other is not None]
    assert np.mean([np.abs(one - other).mean() for one, other in both]) > 20


def many(header):
    header["accessors"][0]["count"] = 10**12


def looped(header):
    header["nodes"][-1]["children"] = list(range(len(header["nodes"])))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a .glb"),
        (b"hello, this is text", "not a .glb"),
        (ROOM[:10], "cut short"),
        (ROOM[:200], "cut short"),
        (ROOM[:-1], "cut short"),
        (b"glTF" + struct.pack("<II", 1, 100) + bytes(88), "version 2"),
        (edited(ROOM, lambda header: header.clear()), "no triangles|damaged"),
        (ROOM[:20] + b"\xff" * 40 + ROOM[60:], "JSON"),
        (needing("KHR_texture_basisu"), "Basis-compressed textures"),
        (edited(ROOM, only_basis), "Basis-compressed textures"),
        (needing("KHR_draco_mesh_compression"), "Draco"),
        (needing("EXT_meshopt_compression"), "meshopt"),
        (edited(ROOM, many), "damaged"),
        (edited(ROOM, lambda header: header.update(textures=7)), "damaged"),
        (trimesh.Scene(trimesh.PointCloud(np.eye(3))).export(file_type="glb"), "no triangles"),
        (room((0.3, 0.3, 3)), "no free place"),
        (room((6, 5, 1)), "no free place"),
    ],
)
def test_every_fault_is_a_scene_with_a_reason(tmp_path, content, words):
    write(tmp_path / "bad scene.glb", content)
    write(tmp_path / "good.glb", ROOM)
    scenes = scene3d.scenes(tmp_path, choose(samples=1))
    assert listed(scenes) == ["bad scene/0000", "good/0000"]
    with pytest.raises(SceneProblem, match=words) as problem:
        list(scenes[0].samples())
    assert str(tmp_path) not in str(problem.value)
    assert "\n" not in str(problem.value)
    assert len(list(scenes[1].samples())) == 24


def test_nodes_that_are_their_own_children_end(tmp_path):
    path = write(tmp_path / "looped.glb", edited(ROOM, looped))
    with contextlib.suppress(SceneProblem):
        assert len(list(scene3d.read(path, "looped", 0, 1, choose()))) == 24


def test_a_file_that_goes_away_is_counted(tmp_path):
    path = write(tmp_path / "room.glb", ROOM)
    scene = scene3d.scenes(tmp_path, choose())[0]
    path.unlink()
    with pytest.raises(SceneProblem, match="No such file"):
        list(scene.samples())


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, changes):
    """Bytes of the header, where most harm is, and of geometry and picture."""
    content = bytearray(ROOM)
    for position, value in changes:
        content[position % (len(content) if position % 2 else 2500)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.glb"
    path.write_bytes(content)
    # The seed tells one content of the file from another: what is opened is kept.
    seed = int.from_bytes(hashlib.sha256(content).digest()[:4])
    with contextlib.suppress(SceneProblem):
        samples = list(scene3d.read(path, "damaged", 0, 1, choose(image_size=32, seed=seed)))
        assert len(samples) in (1, 24)


@pytest.mark.skipif(importlib.util.find_spec("habitat_sim") is not None, reason="habitat-sim is installed here")
def test_habitat_not_installed(tmp_path):
    write(tmp_path / "room.glb", ROOM)
    with pytest.raises(InputError, match=r"habitat-sim.*--renderer=rays") as error:
        scene3d.scenes(tmp_path, choose(renderer="habitat"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [needing("KHR_texture_basisu"), ROOM[:60]])
def test_film_refuses_what_cannot_be_read(tmp_path, content):
    """The same words where one file is filmed by name."""
    with pytest.raises(InputError, match=r"Basis-compressed|cut short"):
        glb.read_world(write(tmp_path / "scan.glb", content))
