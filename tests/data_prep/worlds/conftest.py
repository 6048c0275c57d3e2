"""One room, built once, that the tests of this folder look at."""

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
