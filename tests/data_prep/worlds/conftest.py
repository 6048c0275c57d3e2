"""One room, built once, that the tests of this folder look at."""

import numpy as np
import pytest
import trimesh

from data_prep.worlds import glb, rooms


@pytest.fixture(scope="session")
def room_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("room") / "room.glb"
    path.write_bytes(rooms.build_room(seed=5, index=0).export(file_type="glb"))
    return path


@pytest.fixture(scope="session")
def room(room_file):
    return glb.read_world(room_file)


@pytest.fixture
def save(tmp_path):
    """Saves a scene, or named meshes, as a .glb and returns its path."""

    def save_glb(scene, name="scene.glb"):
        if not isinstance(scene, trimesh.Scene):
            scene = trimesh.Scene(scene)
        path = tmp_path / name
        path.write_bytes(scene.export(file_type="glb"))
        return path

    return save_glb


@pytest.fixture(scope="session")
def distance_to_surfaces():
    """Exact, and independent of rays: metres to the closest point of every triangle, 1 where none is as near."""

    def distance(world, points):
        nearest = []
        for point in points:
            to_box = np.maximum(world.corners.min(1) - point, point - world.corners.max(1)).max(1)
            near = world.corners[to_box < 1.0].astype(float)
            closest = trimesh.triangles.closest_point(near, np.broadcast_to(point, (len(near), 3)))
            nearest.append(np.linalg.norm(closest - point, axis=1).min(initial=1.0))
        return np.array(nearest)

    return distance


@pytest.fixture(scope="session")
def height_above_floor():
    """Independent of rays: metres straight down from each point to the nearest triangle. up: the axis that is up."""

    def height(world, points, up=1):
        level = [axis for axis in range(3) if axis != up]
        corners = world.corners.astype(float)
        one, two, three = corners.transpose(1, 0, 2)
        found = []
        for point in points:
            # Barycentric coordinates in the plan; upright triangles have none.
            u, v, w = two[:, level] - one[:, level], three[:, level] - one[:, level], point[level] - one[:, level]
            area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
            flat = np.abs(area) > 1e-9
            s = (w[flat, 0] * v[flat, 1] - w[flat, 1] * v[flat, 0]) / area[flat]
            t = (u[flat, 0] * w[flat, 1] - u[flat, 1] * w[flat, 0]) / area[flat]
            rise = one[flat, up] + s * (two - one)[flat, up] + t * (three - one)[flat, up]
            below = (s >= 0) & (t >= 0) & (s + t <= 1) & (rise < point[up])
            found.append(point[up] - rise[below].max())
        return np.array(found)

    return height
