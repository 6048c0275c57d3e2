"""Rooms are closed, furnished without collisions, rich in corners, and all different."""

import cv2
import numpy as np
import pytest
import trimesh

from data_prep.worlds import glb, raycast, rooms, shapes
from data_prep.worlds.rays import sphere_directions

SHELL = ("wall", "floor", "ceiling")


@pytest.fixture(scope="module")
def scenes():
    return [rooms.build_room(seed=11, index=index) for index in range(3)]


def test_no_ray_escapes(room):
    rng = np.random.default_rng(0)
    directions = sphere_directions(20_000)
    for origin in rng.uniform(room.low + 0.3, room.high - 0.3, (10, 3)):
        hits = room.rays.first_hits(np.broadcast_to(origin, directions.shape), directions)
        assert (hits.triangle >= 0).all()
        reached = origin + directions * hits.distance[:, None]
        assert (reached > room.low - 1e-3).all()
        assert (reached < room.high + 1e-3).all()


def _hull(vertices):
    """The outline on the floor: glTF's x and z."""
    return cv2.convexHull(vertices[:, [0, 2]].astype(np.float32))


def _shared(one, two):
    """Square metres common to two outlines, unless one passes above the other."""
    if min(one[:, 1].max(), two[:, 1].max()) - max(one[:, 1].min(), two[:, 1].min()) < 0.003:
        return 0.0
    return cv2.intersectConvexConvex(_hull(one), _hull(two))[0]


def test_objects_stand_or_hang_and_do_not_run_into_each_other(scenes):
    for scene in scenes:
        things = {name: mesh.vertices for name, mesh in scene.geometry.items() if not name.startswith(SHELL)}
        low, high = scene.bounds
        assert len(things) >= 12
        names = sorted(things)
        for number, name in enumerate(names):
            vertices = things[name]
            assert (vertices > low - 1e-6).all(), name
            assert (vertices < high + 1e-6).all(), name
            for other in names[number + 1 :]:
                assert _shared(vertices, things[other]) < 1e-4, (name, other)
            bottom, middle = vertices[:, 1].min(), vertices[:, [0, 2]].mean(0)
            on_floor = abs(bottom) < 1e-3
            at_ceiling = abs(vertices[:, 1].max() - high[1]) < 1e-3
            at_wall = min((vertices - low)[:, [0, 2]].min(), (high - vertices)[:, [0, 2]].min()) < 0.03
            on_thing = any(
                abs(host[:, 1].max() - bottom) < 1e-3
                and cv2.pointPolygonTest(_hull(host), middle.astype(float).tolist(), False) > 0
                for key, host in things.items()
                if key != name
            )
            assert on_floor or at_ceiling or on_thing or (name.startswith("picture") and at_wall), name


def test_there_is_something_concave_in_every_room(scenes):
    for scene in scenes:
        ratios = [
            mesh.volume / mesh.convex_hull.volume
            for name, mesh in scene.geometry.items()
            if not name.startswith((*SHELL, "lamp"))
        ]
        assert min(ratios) < 0.5
        assert len(ratios) - len([ratio for ratio in ratios if ratio < 0.98]) >= 4


@pytest.mark.parametrize(
    ("charts", "volume"),
    [
        (shapes.box(2, 3, 4), 24),
        (shapes.cylinder(1, 2), 2 * np.pi),
        (shapes.cylinder(1, 3, top_radius=0.5), np.pi * (1 + 0.5 + 0.25)),
        (shapes.sphere(1), 4 / 3 * np.pi),
        (shapes.torus(2, 0.5), 2 * np.pi**2 * 2 * 0.25),
        (shapes.arch(2, 1, 3, 0.5), np.pi / 2 * (1 - 0.25) + 2 * 0.5 * 2),
    ],
)
def test_shapes_are_closed_and_turned_outwards(charts, volume):
    triangles = np.concatenate([rooms._triangles(chart) for chart in charts])
    solid = trimesh.Trimesh(**trimesh.triangles.to_kwargs(triangles))
    solid.merge_vertices(digits_vertex=7)
    solid.update_faces(solid.nondegenerate_faces())
    assert solid.is_watertight
    assert solid.volume == pytest.approx(volume, rel=0.05)


def test_same_seed_same_room_other_seed_other_room(scenes):
    again = rooms.build_room(seed=11, index=1).export(file_type="glb")
    assert again == scenes[1].export(file_type="glb")
    views = []
    for scene in scenes:
        assert len({tuple(mesh.extents.round(3)) for mesh in scene.geometry.values()}) > 10
        # Mean colours of all objects, largest first: as good as a fingerprint.
        meshes = sorted(scene.geometry.values(), key=lambda mesh: -mesh.area)[:6]
        views.append([np.array(mesh.visual.material.baseColorTexture).mean((0, 1)) for mesh in meshes])
    views = np.array(views)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(views[one] - views[two]).mean() > 10


def test_light_does_not_depend_on_where_one_stands_and_is_neither_dim_nor_glaring(room):
    intrinsics = raycast.pinhole(128)
    centre = (room.low + room.high) / 2
    brightness = []
    for yaw in np.arange(6) * np.pi / 3:
        pose = np.eye(4)
        forward, down = np.array([np.cos(yaw), 0, np.sin(yaw)]), np.array([0, -1.0, 0])
        pose[:3, :3] = np.stack([np.cross(down, forward), down, forward], axis=1)
        pose[:3, 3] = centre
        image = raycast.render(room, pose, intrinsics, 128).image
        brightness.append(image.mean())
        keypoints = cv2.SIFT_create().detect(cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (224, 224)))
        assert len(keypoints) > 150
    assert 60 < np.mean(brightness) < 190


def test_room_survives_saving(room_file, room):
    scene = trimesh.load_scene(room_file)
    assert len(scene.geometry) == len(room.names)
    assert glb.read_world(room_file).names == room.names
    assert room.high[1] == pytest.approx(scene.bounds[1, 1], abs=1e-5)
    assert 2.4 < room.high[1] - room.low[1] < 3.2
