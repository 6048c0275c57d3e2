"""Three panoramas as the recipe says, recovered from the cameras' poses; and what they show."""

import numpy as np
import pytest
import trimesh

from data_prep.worlds import panoramas, raycast, stage

HEIGHT = 1.45


@pytest.fixture(scope="module")
def opened(room_file):
    return stage.open_stage(room_file, HEIGHT, "y", panoramas.camera(56))


@pytest.fixture(scope="module")
def plans(opened):
    plans = [panoramas.plan(opened, np.random.default_rng(seed)) for seed in range(50)]
    assert all(plan is not None for plan in plans)
    return np.array(plans)


def angle(forward):
    """Degrees, counter-clockwise seen from above, with y up."""
    return np.degrees(np.arctan2(forward[..., 0], forward[..., 2]))


def test_cameras_stand_clear_at_eye_height_above_a_floor(opened, plans, distance_to_surfaces, height_above_floor):
    eyes = plans[:, :, 0, :3, 3].reshape(-1, 3)
    assert distance_to_surfaces(opened.world, eyes).min() > 0.1
    np.testing.assert_allclose(height_above_floor(opened.world, eyes), HEIGHT, atol=1e-4)
    # All over the room, not on a grid.
    assert len(np.unique((eyes / 0.2 % 1).round(3)[:, 0])) > len(eyes) / 2
    assert np.ptp(eyes, axis=0)[[0, 2]].min() > 2.5


def test_eight_level_views_from_one_place_45_degrees_apart(plans):
    np.testing.assert_array_equal(plans[..., :3, 3], np.broadcast_to(plans[:, :, :1, :3, 3], plans[..., :3, 3].shape))
    rotation = plans[..., :3, :3]
    np.testing.assert_allclose(
        np.swapaxes(rotation, -1, -2) @ rotation, np.broadcast_to(np.eye(3), rotation.shape), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    # y of the picture points straight down.
    np.testing.assert_allclose(rotation[..., :, 1], np.broadcast_to([0, -1, 0], rotation.shape[:-1]), atol=1e-9)
    turned = (angle(rotation[:, :, 1:, :, 2]) - angle(rotation[:, :, :1, :, 2])) % 360
    np.testing.assert_allclose(turned, np.broadcast_to(np.arange(1, 8) * 45.0, turned.shape), atol=1e-6)


def test_turns_and_steps_are_those_of_the_recipe(opened, plans):
    eyes, heading = plans[:, :, 0, :3, 3], angle(plans[:, :, 0, :3, 2])
    walked = np.diff(eyes, axis=1)
    # A rug lifts the eyes by a centimetre.
    assert np.abs(walked[..., 1]).max() < 0.1
    length = np.linalg.norm(walked[..., [0, 2]], axis=2)
    assert length.min() >= 0.5
    assert length.max() <= 1.0
    assert np.ptp(length) > 0.4
    # Forward: the way that view 0 of the panorama reached looks.
    off = (angle(walked) - heading[:, 1:] + 180) % 360 - 180
    np.testing.assert_allclose(off, 0, atol=1e-6)
    turns = np.diff(heading, axis=1) % 360
    for number, allowed in enumerate(({60, 120, 240, 300}, {0, 60, 120, 240, 300})):
        assert {round(turn) % 360 for turn in turns[:, number]} == allowed
        np.testing.assert_allclose(turns[:, number], turns[:, number].round(), atol=1e-6)
    flat = eyes.copy()
    assert not opened.world.rays.blocked(
        flat[:, :-1].reshape(-1, 3), walked.reshape(-1, 3), np.ones(2 * len(eyes))
    ).any()
    # The first gaze is any.
    assert np.ptp(np.histogram(heading[:, 0], 4, (-180, 180))[0]) < 25


def test_views_are_the_middle_of_a_larger_picture(opened):
    """64 pixels over 90°, of which the middle 56 remain: as 224 of 256."""
    images = list(panoramas.film(opened, np.random.default_rng(3)))
    poses = panoramas.plan(opened, np.random.default_rng(3)).reshape(-1, 4, 4)
    assert len(images) == len(poses) == 24
    for number in (0, 9, 23):
        whole = raycast.render(opened.world, poses[number], raycast.pinhole(64, 90), 64).image
        cropped = whole[4:60, 4:60].astype(int)
        # Which pixels are averaged at an edge depends on neighbours, and the crop's outermost have fewer.
        same = np.abs(cropped - images[number]).max(axis=2) <= 1
        assert same.mean() > 0.97
        assert same[2:-2, 2:-2].all()


def test_only_large_islands_are_stood_on_where_there_are_any(save):
    hall, closet = trimesh.creation.box((14, 3, 5)), trimesh.creation.box((3, 3, 3))
    hall.apply_translation((0, 1.5, 0))
    closet.apply_translation((10, 1.5, 0))
    both = stage.open_stage(save({"hall": hall, "closet": closet}), 1.5, "y", panoramas.camera(56))
    places = np.array([both.place(np.random.default_rng(seed)) for seed in range(200)])
    assert places[:, 0].max() < 7
    assert np.ptp(places[:, 0]) > 12
    alone = stage.open_stage(save(closet, "closet.glb"), 1.5, "y", panoramas.camera(56))
    places = np.array([alone.place(np.random.default_rng(seed)) for seed in range(200)])
    assert (np.abs(places[:, 0] - 10) < 1.5 - 0.1).all()
    assert np.ptp(places[:, 0]) > 2.2


def test_no_place_where_there_is_no_room_for_a_step(save):
    shaft = trimesh.creation.box((0.6, 3, 0.6))
    assert (
        panoramas.plan(stage.open_stage(save(shaft), 1.5, "y", panoramas.camera(56)), np.random.default_rng(0)) is None
    )


@pytest.mark.parametrize(("amplitude", "blank"), [(0, True), (7, True), (8, False), (100, False)])
def test_blank_is_a_variance_of_the_laplacian_below_1000(amplitude, blank):
    """Columns that alternate by ±k have a Laplacian of ∓4k: variance 16 k²."""
    stripes = np.full((32, 32, 3), 128, np.uint8)
    stripes[:, ::2] += amplitude
    stripes[:, 1::2] -= amplitude
    assert panoramas.is_blank(stripes) == blank
