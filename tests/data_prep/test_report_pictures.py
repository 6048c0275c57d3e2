"""Labels in colour: what the colours say is what was stored."""

import colorsys
import dataclasses
import json
from base64 import b64decode

import cv2
import numpy as np
import pytest

from data_prep import report_pictures as pictures
from data_prep.report import collect, report
from mimic_jax import records
from mimic_jax.records import dense, images, stereo
from tests.datasets import make_image, make_stereo, write_dataset

LABELS = ("depth", "normals", "classes", "boxes", "keypoints", "label")


def write(folder, kind, schema, made):
    write_dataset(folder, made, schema=schema, shards=1)
    entry = {
        "frames_read": 9,
        "tried": 8,
        "kept": len(made),
        "rejected": {"dark": 2},
        "problems": {},
        "source": "films",
    }
    manifest = {
        "kind": kind, "classes": ["wall", "floor", "chair"], "settings": {"name": "films", "records": kind},
        "versions": {}, "totals": {"scenes": 1, **entry}, "scenes": {"room": entry},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def panels(shown):
    return {panel["name"]: records.decode_image(b64decode(panel["picture"])) for panel in shown["panels"]}


def hue(pixel):
    return colorsys.rgb_to_hsv(*(pixel / 255))[0] * 360


def test_images_are_shown_beside_their_labels(tmp_path):
    made = [make_image(seed, LABELS) for seed in range(6)]
    write(tmp_path / "d", "images", images.schema(LABELS), made)
    data = collect(tmp_path / "d")
    assert (data["kind"], data["count"], data["words"]["many"]) == ("images", 6, "images")
    assert data["sources"][0]["tried"] == 8
    assert sorted(shown["frames"][0] for shown in data["gallery"]) == list(range(6))
    for shown in data["gallery"]:
        record = made[shown["frames"][0]]
        found = panels(shown)
        assert list(found) == ["image", "depth", "normals", "classes"]
        assert all(picture.shape == (48, 64, 3) for picture in found.values())
        present = set(dense.decode_classes(record.classes).ravel().tolist()) - {-1}
        assert {name for name, _ in shown["legend"]} == {("wall", "floor", "chair")[index] for index in present}
        assert shown["label"] == ("wall", "floor", "chair")[record.label]
    report(tmp_path / "d", tmp_path / "d.html")
    assert "Labelled images" in (tmp_path / "d.html").read_text()


def test_stereo_records_are_shown_with_their_flow(tmp_path):
    write(tmp_path / "d", "stereo", stereo.schema(["flow"]), [make_stereo(seed) for seed in range(3)])
    data = collect(tmp_path / "d")
    assert data["count"] == 3
    for shown in data["gallery"]:
        assert list(panels(shown)) == ["view 1", "view 2", "flow"]
        assert shown["frames"][1] == shown["frames"][0] + 5
        assert shown["panels"][2]["words"].startswith("up to 4")  # at most 30·√2 pixels


def test_a_label_that_cannot_be_decoded_is_said_to_be(tmp_path):
    broken = dataclasses.replace(make_image(0, ["depth"]), depth=b"junk")
    write(tmp_path / "d", "images", images.schema(["depth"]), [broken])
    (shown,) = collect(tmp_path / "d")["gallery"]
    assert shown["panels"][1] == {"name": "depth", "words": "cannot be decoded", "picture": None}
    assert shown["panels"][0]["picture"] is not None


def test_near_is_red_far_is_blue_unknown_is_black():
    depth = np.array([[1, 2, 4, 0]], np.float32)
    picture, words = pictures.colour_depth(depth)
    turbo = cv2.applyColorMap(np.array([[255, 85, 0]], np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    np.testing.assert_array_equal(picture[0, :3], turbo[0])  # inverse depth 1, ½, ¼: 1, ⅓, 0 of the range
    assert picture[0, 3].max() == 0
    assert words == "1 to 4 m"
    assert picture[0, 0, 0] > picture[0, 0, 2]
    assert picture[0, 2, 2] > picture[0, 2, 0]


def test_normals_are_coloured_by_right_up_and_towards_the_camera():
    normals = np.array([[[1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 0]]], np.float32)
    picture = pictures.colour_normals(normals, np.array([[True, True, True, False]]))
    np.testing.assert_array_equal(picture[0], [[255, 128, 128], [128, 255, 128], [128, 128, 255], [0, 0, 0]])


def test_classes_have_colours_of_their_own_and_ignored_is_black():
    picture = pictures.colour_classes(np.array([[0, 1, 2], [2, -1, 0]], np.int32))
    assert (picture[1, 1] == 0).all()
    np.testing.assert_array_equal(picture[0, 2], picture[1, 0])
    np.testing.assert_array_equal(picture[0, 0], pictures.class_colour(0))
    colours = np.array([pictures.class_colour(index) for index in range(26)], float)
    apart = np.abs(colours[:, None] - colours).max(-1) + 255 * np.eye(26)
    assert apart.min() > 12


@pytest.mark.parametrize(("flow", "degrees"), [((9, 0), 0), ((0, 9), 90), ((-9, 0), 180), ((0, -9), 270)])
def test_the_hue_of_flow_is_its_direction(flow, degrees):
    picture, words = pictures.colour_flow(
        np.array([[flow, (0, 0), (3, 3)]], np.float32), np.array([[True, True, False]])
    )
    assert abs((hue(picture[0, 0]) - degrees + 180) % 360 - 180) < 2
    np.testing.assert_array_equal(picture[0, 1], [255, 255, 255])  # no motion: white
    assert picture[0, 2].max() == 0
    assert words == "up to 9 px"
