"""Labels of films against the films' own ground truth, the .glb files, and OpenCV's projection."""

import functools
import inspect
import json
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
import trimesh
from array_record.python.array_record_module import ArrayRecordReader

from data_prep.label import label
from data_prep.labels import Settings
from data_prep.labels.worlds import kind_of_object
from data_prep.worlds import filming, furniture, glb, rooms
from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.records import dense

FRAMES, SIZE = 20, 64


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    filming.film_scene(folder, 0, filming.Settings(frames=FRAMES, size=SIZE, seed=5, ground_truth=True))
    shutil.rmtree(folder / filming.DRAFTS)
    return folder


@pytest.fixture(scope="module")
def truth(films):
    with np.load(films / "room_0000.npz") as record:
        return dict(record)


def stored(folder):
    opened = records.open_dataset(folder)
    return [opened.decode(data) for shard in opened.shards for data in ArrayRecordReader(str(shard)).read_all()]


@functools.cache
def made(films, **given):
    """The records of the films with these settings, the dataset's folder, and its manifest."""
    output = films.parent / "".join(f"{key}{value}" for key, value in sorted(given.items()))
    manifest = label(films, output, Settings("films", **given), processes=1)
    return stored(output), output, manifest


def shown(films):
    reader, frames = cv2.VideoCapture(str(films / "room_0000.mp4")), []
    while (read := reader.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames


def test_images_have_the_labels_of_their_frames(films, truth):
    images, output, manifest = made(films, every=6)
    assert [each.frame for each in images] == [0, 6, 12, 18]
    assert manifest["totals"]["kept"] == 4
    frames = shown(films)
    # By id, from the file itself: the names in the film's .npz are not asked.
    names = ["nothing", *glb.read_world(films / "room_0000.glb").names]
    classes = records.open_dataset(output).classes()
    assert classes == rooms.KINDS
    for each in images:
        assert (each.source, each.scene) == ("films", "room_0000")
        assert np.abs(records.decode_image(each.image).astype(int) - frames[each.frame]).mean() < 8
        np.testing.assert_array_equal(each.intrinsics, truth["intrinsics"].astype(np.float32))
        depth = dense.decode_depth(each.depth, each.metres_per_unit)
        np.testing.assert_allclose(depth, truth["depth"][each.frame], atol=10 / 65535)
        normals, valid = dense.decode_normals(each.normals)
        assert valid.all()
        unit = truth["normal"][each.frame].astype(float)
        unit /= np.linalg.norm(unit, axis=2, keepdims=True)
        assert np.degrees(2 * np.arcsin(np.linalg.norm(normals - unit, axis=2) / 2)).max() < 0.45
        found = dense.decode_classes(each.classes)
        for identity in np.unique(truth["instance"][each.frame]):
            (index,) = np.unique(found[truth["instance"][each.frame] == identity])
            assert classes[index] == names[identity].rstrip("0123456789").rstrip("_")
    source = tfds.builder_from_directory(output).as_data_source("train")
    assert source[0]["depth"].shape == (SIZE, SIZE, 1)
    assert source[0]["depth"].dtype == np.uint16


def test_stereo_flow_is_where_opencv_projects_the_points(films, truth):
    pairs, output, _ = made(films, records="stereo", every=4, gap=6)
    assert [(each.frame1, each.frame2) for each in pairs] == [(0, 6), (4, 10), (8, 14), (12, 18)]
    assert len(tfds.builder_from_directory(output).as_data_source("train")) == 4
    frames = shown(films)
    for each in pairs:
        flow, valid = dense.decode_flow(each.flow, each.flow_unit)
        assert 0.2 < valid.mean() < 1
        row, column = np.nonzero(valid)
        pixels = np.stack([column, row], 1).astype(np.float64)
        # Points of view 1 from its depth, moved by the stored pose and projected by OpenCV.
        rays = cv2.undistortPoints(pixels[:, None], each.intrinsics1.astype(float), None)[:, 0]
        depth1 = truth["depth"][each.frame1][valid].astype(np.float64)
        points = np.concatenate([rays, np.ones((len(rays), 1))], 1) * depth1[:, None]
        turn, shift = cv2.Rodrigues(each.pose[:3, :3].astype(float))[0], each.pose[:3, 3].astype(float)
        there, _ = cv2.projectPoints(points, turn, shift, each.intrinsics2.astype(float), None)
        np.testing.assert_allclose(pixels + flow[valid], there[:, 0], atol=5e-3)
        # The pictures agree.
        grey1, grey2 = (
            cv2.cvtColor(np.ascontiguousarray(frames[n]), cv2.COLOR_RGB2GRAY) for n in (each.frame1, each.frame2)
        )
        x, y = (pixels + flow[valid]).astype(np.float32).T
        warped = cv2.remap(grey2, x[:, None], y[:, None], cv2.INTER_LINEAR)[:, 0].astype(float)
        still = grey2[valid].astype(float)
        assert np.abs(warped - grey1[valid]).mean() < 0.7 * np.abs(still - grey1[valid]).mean()


def test_flow_is_valid_where_rays_from_camera_2_meet_the_points(films, truth):
    """A ray to each point of view 1 meets nothing before it where the point is seen: cast in the world itself."""
    world = glb.read_world(films / "room_0000.glb")
    agree, missed, wrong, count = 0, 0, 0, 0
    for each in made(films, records="stereo", every=4, gap=6)[0]:
        _, valid = dense.decode_flow(each.flow, each.flow_unit)
        pose1, pose2 = (truth["camera_to_world"][number] for number in (each.frame1, each.frame2))
        row, column = np.indices(valid.shape)
        rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(truth["intrinsics"]).T
        points = rays * truth["depth"][each.frame1][..., None] @ pose1[:3, :3].T + pose1[:3, 3]
        there = (points - pose2[:3, 3]) @ pose2[:3, :3] @ truth["intrinsics"].T
        x, y = there[..., 0] / there[..., 2], there[..., 1] / there[..., 2]
        inside = (there[..., 2] > 0) & (x >= 0) & (x <= SIZE - 1) & (y >= 0) & (y <= SIZE - 1)
        origin = np.broadcast_to(pose2[:3, 3], points.shape).reshape(-1, 3).astype(np.float32)
        hits = world.rays.first_hits(origin, (points - pose2[:3, 3]).reshape(-1, 3).astype(np.float32))
        # The point itself is at 1.
        seen = inside & (hits.distance.reshape(valid.shape) > 0.995)
        agree, missed = agree + (seen & valid).sum(), missed + (seen & ~valid).sum()
        wrong, count = wrong + (valid & inside & ~seen).sum(), count + valid.sum()
    print(f"seen and valid {agree}, seen but not valid {missed}, valid but hidden {wrong}")
    assert missed < 0.08 * (agree + missed)
    assert wrong < 0.01 * count


def test_smaller_images_keep_their_geometry(films, truth):
    """A pixel's 3-D point, by the smaller depth and intrinsics, is on a surface of the larger picture near by."""
    images, _, _ = made(films, every=19, image_size=40)
    small = images[0]
    assert records.decode_image(small.image).shape == (40, 40, 3)
    depth = dense.decode_depth(small.depth, small.metres_per_unit)
    assert depth.shape == dense.decode_classes(small.classes).shape == (40, 40)
    row, column = np.indices((40, 40))
    points = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(small.intrinsics).T * depth[..., None]
    projected = points @ truth["intrinsics"].T
    x, y = projected[..., 0] / projected[..., 2], projected[..., 1] / projected[..., 2]
    # The middle of pixel (r, c) of 40 is at ((c + ½) · 64/40 − ½) of 64.
    np.testing.assert_allclose(x, (column + 0.5) * 1.6 - 0.5, atol=1e-3)
    np.testing.assert_allclose(y, (row + 0.5) * 1.6 - 0.5, atol=1e-3)
    near = truth["depth"][0][(y + 0.501).astype(int), (x + 0.501).astype(int)]
    np.testing.assert_allclose(depth, near, atol=1e-3)
    flows, _, _ = made(films, records="stereo", every=19, gap=8, image_size=32)
    large, _, _ = made(films, records="stereo", every=19, gap=8)
    half, valid = dense.decode_flow(flows[0].flow, flows[0].flow_unit)
    whole, valid_whole = dense.decode_flow(large[0].flow, large[0].flow_unit)
    np.testing.assert_array_equal(valid, valid_whole[1::2, 1::2])
    np.testing.assert_allclose(half[valid], whole[1::2, 1::2][valid] / 2, atol=5e-3)


def test_every_kind_of_thing_in_rooms_has_a_class():
    rng = np.random.default_rng(0)
    used = set(furniture.AGAINST_A_WALL + furniture.STANDING_FREE)
    names = {make(rng).name for make in used} | {furniture.trinket(rng).name for _ in range(60)}
    names |= {furniture.lamp(rng, 0.5).name, "wall", "floor", "ceiling", "panel", "rug", "picture"}
    assert names == set(rooms.KINDS)
    makers = {function for _, function in inspect.getmembers(furniture, inspect.isfunction)}
    assert used | {furniture.lamp, furniture.slab, furniture.trinket, furniture.choose} <= makers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wall_3", "wall"), ("small_box_12", "small_box"), ("Chair.001", "Chair"), ("Chair.001_2", "Chair"),
        ("sofa", "sofa"), ("12", "object"), ("coffee table 4", "coffee table"), ("B52 bomber", "B52 bomber"),
    ],
)  # fmt: skip
def test_the_kind_of_an_object_is_its_name_without_its_number(name, kind):
    assert kind_of_object(name) == kind


def test_films_of_a_users_glb_have_the_classes_of_its_nodes(tmp_path):
    scene = trimesh.Scene()
    walls = trimesh.creation.box((8, 3, 8))
    walls.invert()
    scene.add_geometry(walls, node_name="Room")
    for number, (x, z) in enumerate([(-3, -3), (3, 3)]):
        box = trimesh.creation.box((0.6, 0.9, 0.6))
        box.apply_translation((x, -1.05, z))
        scene.add_geometry(box, node_name=f"Crate.00{number}")
    scene.export(tmp_path / "hall.glb")
    settings = filming.Settings(frames=8, size=32, ground_truth=True, glb=str(tmp_path / "hall.glb"))
    filming.film_scene(tmp_path / "films", 0, settings)
    manifest = label(tmp_path / "films", tmp_path / "out", Settings("halls", every=3), processes=1)
    assert manifest["classes"] == ["Crate", "Room"]
    found = np.concatenate([dense.decode_classes(each.classes).ravel() for each in stored(tmp_path / "out")])
    assert 1 in found
    assert set(found) <= {0, 1}
    # A film with another class would change the meaning of what is stored.
    with np.load(tmp_path / "films" / "hall_0000.npz") as record:
        other = dict(record) | {"names": np.array(["Room", "Crate", "Lamp"])}
    np.savez(tmp_path / "films" / "hall_0001.npz", **other)
    with pytest.raises(InputError, match=r"other classes than this dataset \(new: \['Lamp'\]\)"):
        label(tmp_path / "films", tmp_path / "out", Settings("halls", every=3), processes=1)


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(films, truth, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    for name in ("blind", "nameless", "broken", "empty", "cut", "lost"):
        shutil.copy(films / "room_0000.mp4", folder / f"{name}.mp4")
    bare = {key: truth[key] for key in ("camera_to_world", "intrinsics", "fps", "settings")}
    np.savez(folder / "blind.npz", **bare)
    np.savez(folder / "nameless.npz", **{key: value for key, value in truth.items() if key != "names"})
    (folder / "broken.npz").write_bytes((films / "room_0000.npz").read_bytes()[:5000])
    (folder / "empty.npz").write_bytes(b"")
    shutil.copy(films / "room_0000.npz", folder / "cut.npz")
    (folder / "cut.mp4").write_bytes(b"junk")
    shutil.copy(films / "room_0000.npz", folder / "lost.npz")
    (folder / "lost.mp4").unlink()
    manifest = label(folder, tmp_path / "out", Settings("films", every=6), processes=1)
    problems = {name: entry["problems"] for name, entry in manifest["scenes"].items()}
    assert problems == {
        "blind": {"filmed without --ground_truth": 1},
        "nameless": {"filmed by an earlier version, without the names of objects: film it again": 1},
        "broken": {"cannot be read (.npz)": 1},
        "empty": {"cannot be read (.npz)": 1},
        "cut": {"cannot be read (.mp4)": 1},
        "lost": {"cannot be read (.mp4)": 1},
        "room_0000": {},
    }
    assert manifest["totals"]["kept"] == 4
    json.dumps(manifest)
    # Read again when the film is mended.
    shutil.copy(films / "room_0000.npz", folder / "broken.npz")
    manifest = label(folder, tmp_path / "out", Settings("films", every=6), processes=1)
    assert manifest["scenes"]["broken"]["kept"] == 4


def test_views_that_share_too_little_are_counted(films):
    _, _, manifest = made(films, records="stereo", every=4, gap=6)
    shares = [
        dense.decode_flow(each.flow, each.flow_unit)[1].mean()
        for each in made(films, records="stereo", every=4, gap=6)[0]
    ]
    limit = float(np.mean([min(shares), max(shares)]))
    pairs, _, strict = made(films, records="stereo", every=4, gap=6, min_overlap=limit)
    assert len(pairs) == sum(share >= limit for share in shares) < len(shares)
    assert strict["totals"]["rejected"] == {"the views share too little": len(shares) - len(pairs)}
    assert manifest["totals"]["rejected"] == {}
