"""Depth, normals, ids and colours against closed forms and OpenCV."""

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from data_prep.worlds import glb, raycast, texels
from mimic_jax.command import InputError

SIZE = 64


def look(position, forward):
    """Camera to world, y up."""
    forward = np.array(forward, float) / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 1, 0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def pixel_rays(pose, intrinsics, size=SIZE):
    row, column = np.mgrid[:size, :size]
    return np.stack([column, row, np.ones_like(row)], 2) @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T


def quad(image=None, factor=None, half=1.0):
    """A square in the plane z = 0 that faces +z, its image upright."""
    corners = np.array([[-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]], float) * half
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], float)
    material = PBRMaterial(baseColorTexture=image, baseColorFactor=factor)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(corners, [[0, 3, 1], [1, 3, 2]], visual=visual, process=False)


def test_depth_and_normals_in_a_box_room(save):
    extent = np.array([5.0, 3.0, 4.0])
    world = glb.read_world(save(trimesh.creation.box(extent)))
    pose, intrinsics = look((0.4, 0.1, -0.7), (0.6, -0.2, 0.5)), raycast.pinhole(SIZE)
    view = raycast.render(world, pose, intrinsics, SIZE)
    rays = pixel_rays(pose, intrinsics)
    # Slabs: each ray leaves the box through the first of three walls.
    exits = (np.sign(rays) * extent / 2 - pose[:3, 3]) / rays
    np.testing.assert_allclose(view.depth, exits.min(2), atol=1e-4)
    wall = exits.argmin(2)
    outward = -np.sign(np.take_along_axis(rays, wall[..., None], 2)) * np.eye(3)[wall]
    np.testing.assert_allclose(view.normal @ pose[:3, :3].T, outward, atol=1e-5)


def test_depth_and_normals_of_a_sphere_placed_by_its_node(save):
    scene = trimesh.Scene()
    ball = trimesh.creation.icosphere(subdivisions=6, radius=0.25)
    centre = np.array([0.3, 0.2, -3.0])
    # Twice as large, by the node's transform.
    scene.add_geometry(ball, transform=np.diag([2.0, 2, 2, 1]) + np.pad(centre[:, None], ((0, 1), (3, 0))))
    world = glb.read_world(save(scene))
    pose, intrinsics = look((0, 0, 0), (0, 0, -1)), raycast.pinhole(SIZE)
    view = raycast.render(world, pose, intrinsics, SIZE)
    rays = pixel_rays(pose, intrinsics)
    a, b, c = (rays**2).sum(2), -2 * rays @ centre, centre @ centre - 0.5**2
    square = b * b - 4 * a * c
    depth = (-b - np.sqrt(np.maximum(square, 0))) / (2 * a)
    normal = (rays * depth[..., None] - centre) / 0.5
    facing = -np.einsum("yxk,yxk->yx", rays, normal) / np.sqrt(a)
    inner = (square > 0) & (facing > 0.3)
    assert inner.sum() > 200
    np.testing.assert_allclose(view.depth[inner], depth[inner], atol=1e-4)
    # Facets of the mesh lean a little.
    np.testing.assert_allclose((view.normal @ pose[:3, :3].T)[inner], normal[inner], atol=0.02)
    outside = square < -0.05
    assert (view.depth[outside] == 0).all()
    assert (view.instance[outside] == 0).all()
    assert (view.normal[outside] == 0).all()
    # Beside the outline, pixels are averages.
    clear = cv2.erode(outside.astype(np.uint8), np.ones((3, 3))) > 0
    assert (view.image[clear] == raycast.SKY).all()


def test_normals_are_unit_and_face_the_camera(room):
    centre = (room.low + room.high) / 2
    intrinsics = raycast.pinhole(SIZE)
    for forward in ((1, -0.3, 0.2), (-0.5, 0.4, 1)):
        pose = look(centre, forward)
        view = raycast.render(room, pose, intrinsics, SIZE)
        np.testing.assert_allclose(np.linalg.norm(view.normal, axis=2), 1, atol=1e-5)
        assert (np.einsum("yxk,yxk->yx", view.normal, pixel_rays(np.eye(4), intrinsics)) < 0).all()


def test_instance_ids_belong_to_objects(room):
    """The id seen at a pixel is that of the object whose surface the point lies on, from wherever it is seen."""
    intrinsics = raycast.pinhole(SIZE)
    centre = (room.low + room.high) / 2
    for offset in ((0, 0, 0), (0.4, 0.2, -0.3)):
        pose = look(centre + offset, (1, -0.4, 0.3))
        view = raycast.render(room, pose, intrinsics, SIZE)
        points = pose[:3, 3] + pixel_rays(pose, intrinsics) * view.depth[..., None]
        for instance in np.unique(view.instance):
            seen = points[view.instance == instance]
            corners = room.corners[room.instance == instance].reshape(-1, 3)
            assert (seen > corners.min(0) - 1e-3).all()
            assert (seen < corners.max(0) + 1e-3).all()


def test_two_placements_of_one_mesh_are_two_instances(save):
    scene = trimesh.Scene()
    for x in (-1, 1):
        move = trimesh.transformations.translation_matrix((x, 0, -4))
        scene.add_geometry(trimesh.creation.box((0.5, 0.5, 0.5)), node_name=f"box{x}", geom_name="box", transform=move)
    world = glb.read_world(save(scene))
    view = raycast.render(world, look((0, 0, 0), (0, 0, -1)), raycast.pinhole(SIZE), SIZE)
    assert len(world.names) == 2
    left, right = np.unique(view.instance[:, : SIZE // 2]), np.unique(view.instance[:, SIZE // 2 :])
    assert {*left, *right} == {0, 1, 2}
    assert len(left) == len(right) == 2


def test_texture_is_the_right_way_round(save):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    picture = Image.fromarray(colours.repeat(32, 0).repeat(32, 1))
    world = glb.read_world(save(quad(picture)))
    view = raycast.render(world, look((0, 0, 1.6), (0, 0, -1)), raycast.pinhole(SIZE), SIZE)
    quarter = SIZE // 4
    seen = view.image[quarter :: 2 * quarter, quarter :: 2 * quarter]
    np.testing.assert_allclose(seen.astype(int), colours.astype(int), atol=1)


def test_colour_factor_multiplies_the_texture_in_linear_light(save):
    white = Image.fromarray(np.full((8, 8, 3), 255, np.uint8))
    world = glb.read_world(save(quad(white, factor=[51, 255, 128, 255])))
    view = raycast.render(world, look((0, 0, 1.6), (0, 0, -1)), raycast.pinhole(SIZE), SIZE)
    expected = 255 * (np.array([51, 255, 128]) / 255) ** (1 / 2.2)
    np.testing.assert_allclose(view.image[SIZE // 2, SIZE // 2], expected, atol=2)


def test_vertex_colours_are_shown_and_plain_surfaces_are_shaded(save):
    red = trimesh.creation.box((1, 1, 1))
    red.visual.vertex_colors = np.tile([200, 30, 40, 255], (8, 1))
    pose = look((1.5, 1.2, 2), (-1.5, -1.2, -2))
    view = raycast.render(glb.read_world(save(red)), pose, raycast.pinhole(SIZE), SIZE)
    assert (view.image[view.instance == 1] == (200, 30, 40)).mean() > 0.9
    plain = trimesh.Trimesh(*[getattr(trimesh.creation.box((1, 1, 1)), k) for k in ("vertices", "faces")])
    view = raycast.render(glb.read_world(save(plain)), pose, raycast.pinhole(SIZE), SIZE)
    middle = [np.median(view.image[np.abs(view.normal @ pose[:3, :3].T)[..., k] > 0.9], axis=0) for k in range(3)]
    assert len({tuple(colour) for colour in middle}) == 3


def test_sampling_agrees_with_opencv():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((20, 33, 3), (64, 48, 3))]
    store = texels.pack(images)
    u, v = rng.random((2, 500))
    for number, image in enumerate(images):
        half = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
        for level, picture in enumerate((image, half)):
            height, width = picture.shape[:2]
            x, y = (u * width - 0.5).astype(np.float32)[:, None], (v * height - 0.5).astype(np.float32)[:, None]
            expected = cv2.remap(picture.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[:, 0]
            found = texels.sample(
                store,
                np.full(500, number),
                u.astype(np.float32),
                # One turn further on is the same place.
                (v + 1).astype(np.float32),
                np.full(500, level, np.float32),
            )
            # remap rounds positions to 1/32 texel, and these textures are noise.
            assert np.abs(found - expected).max() < 255 / 32
            assert np.abs(found - expected).mean() < 1.5


def test_fine_patterns_far_away_are_grey_and_not_aliased(save):
    cells = np.indices((512, 512)).sum(0) % 2 * 255
    picture = Image.fromarray(np.dstack([cells] * 3).astype(np.uint8))
    world = glb.read_world(save(quad(picture)))
    view = raycast.render(world, look((0, 0, 3), (0, 0, -1)), raycast.pinhole(SIZE), SIZE)
    seen = view.image[SIZE // 2 - 8 : SIZE // 2 + 8, SIZE // 2 - 8 : SIZE // 2 + 8].astype(float)
    assert abs(seen.mean() - 127.5) < 3
    assert seen.std() < 3


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"hello", "not a .glb"), (b"glTF\x02\0\0\0 cut short", "damaged"), (b"", "not a .glb")],
)
def test_files_that_are_no_glb(tmp_path, content, words):
    path = tmp_path / "bad.glb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        glb.read_world(path)
