"""Each published combination, on a tiny tree of the layout that its data has on disk."""

import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import matching
from data_prep.mine import mine
from data_prep.rotations import read_table
from data_prep.settings import PRESETS, choose
from data_prep.worlds import rooms
from mimic_jax import records
from mimic_jax.command import InputError
from mimic_jax.data.pairs import read_pairs

RATE = 10
ROOT = Path(__file__).resolve().parents[2]


def texture(seed, height, width):
    """A BGR strip with corners and blobs at every scale."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(height * width // 200):
        centre, radius = (int(rng.integers(width)), int(rng.integers(height))), int(rng.integers(2, 14))
        cv2.circle(image, centre, radius, tuple(map(int, rng.integers(0, 256, 3))), -1, cv2.LINE_AA)
    return image


def pan(seed, frames, shift, size=(120, 160)):
    """Views of a camera that moves by `shift` pixels a frame; 60 of 160 pixels leave an overlap of about 62 %."""
    strip = texture(seed, size[0], size[1] + shift * frames)
    return [np.ascontiguousarray(strip[:, shift * i : shift * i + size[1]]) for i in range(frames)]


def write_video(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    # MJPG in any container.
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, images[0].shape[1::-1])
    assert writer.isOpened()
    for image in images:
        writer.write(image)
    writer.release()


def write_images(folder, images, name="{:06d}.jpg", first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        cv2.imwrite(str(folder / name.format(number)), image)


def mined(tmp_path, preset, turns=None, **given):
    """The pairs as (scene, frame1, frame2), the pairs themselves, and the manifest."""
    settings = choose(preset, preset, **given)
    manifest = mine(tmp_path / "in", tmp_path / "out", settings, turns=turns, processes=2)
    dataset = records.open_dataset(tmp_path / "out")
    pairs = list(read_pairs(dataset, list(range(len(dataset)))))
    return [(pair.scene, pair.frame1, pair.frame2) for pair in pairs], pairs, manifest


def test_mannequin(tmp_path):
    # VIDEO/TRIM.mp4; captions at the bottom do not count; trims under three seconds are left out.
    images = pan(0, 41, 6)
    for image in images:
        image[96:] = texture(9, 24, 160)  # Captions stay where they are.
    write_video(tmp_path / "in" / "0a1b2c" / "trim_000.mp4", images)
    write_video(tmp_path / "in" / "0a1b2c" / "trim_001.mp4", pan(1, 29, 6))
    found, pairs, manifest = mined(tmp_path, "mannequin")
    assert found == [("0a1b2c/trim_000", t, t + 10) for t in range(0, 40, 10)]
    assert manifest["scenes"]["0a1b2c/trim_001"]["problems"] == {"shorter than 3 s": 1}
    # The upper 96 of 120 rows, stretched to 224: 60 of 160 pixels are 84 of 224.
    for pair in pairs:
        np.testing.assert_allclose(pair.homography, [[1, 0, -84], [0, 1, 0], [0, 0, 1]], atol=2)
        expected = cv2.resize(images[pair.frame1][:96], (224, 224))[..., ::-1]
        assert np.abs(records.decode_image(pair.view1).astype(int) - expected).mean() < 10


def test_arkitscenes(tmp_path):
    # Training/VIDEO/VIDEO.mov, each turned its own way; too much overlap at one second, the right one at two.
    slow, fast = pan(2, 61, 2), pan(3, 61, 6)
    turned = [cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE) for image in slow]
    write_video(tmp_path / "in" / "Training" / "41048190" / "41048190.mov", turned)
    write_video(tmp_path / "in" / "Training" / "42444946" / "42444946.mov", fast)
    write_video(tmp_path / "in" / "Validation" / "1" / "1.mov", pan(4, 45, 6))
    write_video(tmp_path / "in" / "Validation" / "2" / "2.mov", pan(4, 61, 6))
    (tmp_path / "metadata.csv").write_text(
        "video_id,visit_id,fold,sky_direction\n41048190,421254,Training,Left\n42444946,1,Training,Up\n1,2,V,Down\n3,,,NA\n"
    )
    turns = read_table(tmp_path / "metadata.csv")
    assert turns == {"41048190": 90, "42444946": 0, "1": 180}
    found, pairs, manifest = mined(tmp_path, "arkitscenes", turns, rotation="table")
    assert found == [
        *[("Training/41048190/41048190", t, t + 20) for t in (0, 20, 40)],
        *[("Training/42444946/42444946", t, t + 10) for t in range(0, 60, 10)],
    ]
    for pair, image in [(pairs[0], slow[0]), (pairs[3], fast[0])]:
        expected = cv2.resize(image, (224, 224))[..., ::-1]
        assert np.abs(records.decode_image(pair.view1).astype(int) - expected).mean() < 10
    assert manifest["scenes"]["Validation/1/1"]["problems"] == {"shorter than 5 s": 1}
    assert manifest["scenes"]["Validation/2/2"]["problems"] == {"not in the table of rotations": 1}


def test_objectron(tmp_path):
    # CLASS/batch-N/M/video.MOV
    write_video(tmp_path / "in" / "chair" / "batch-1" / "0" / "video.MOV", pan(5, 31, 6))
    assert mined(tmp_path, "objectron")[0] == [("chair/batch-1/0/video", t, t + 10) for t in (0, 10, 20)]


def test_co3d(tmp_path):
    # CLASS/SEQUENCE/images/frame000001.jpg, with masks and depth beside.
    sequence = tmp_path / "in" / "apple" / "110_13051_23361"
    write_images(sequence / "images", pan(6, 28, 12), "frame{:06d}.jpg", first=1)
    write_images(sequence / "masks", pan(7, 28, 12), "frame{:06d}.png", first=1)
    found, _, manifest = mined(tmp_path, "co3d")
    assert found == [("apple/110_13051_23361", i, i + 5) for i in (1, 11, 21)]
    assert manifest["totals"]["pairs_tried"] == 3


def test_scannet(tmp_path):
    # SCENE/color/0.jpg … in numeric order, with depth and poses beside; the last block is not full.
    scene = tmp_path / "in" / "scene0000_00"
    images = pan(8, 130, 1)
    write_images(scene / "color", images, "{}.jpg")
    write_images(scene / "depth", images[:3], "{}.png")
    found, pairs, manifest = mined(tmp_path, "scannet")
    assert [(name, first // 60, second // 60) for name, first, second in found] == [
        ("scene0000_00", 0, 0),
        ("scene0000_00", 1, 1),
    ]
    stored = {n: cv2.imread(str(scene / "color" / f"{n}.jpg"), cv2.IMREAD_COLOR_RGB) for n in range(60)}
    overlaps = [matching.match(stored[i], stored[j]).overlap for i in range(10) for j in range(50, 60)]
    assert pairs[0].overlap == pytest.approx(min(x for x in overlaps if 0.5 <= x <= 0.75))
    assert manifest["totals"]["pairs_tried"] == 200
    assert manifest["totals"]["frames_read"] == 40 + 10


def test_demon(tmp_path):
    # SCENE/0000.jpg …: the pair with the lowest overlap inside the band.
    write_images(tmp_path / "in" / "a_scene", pan(10, 4, 30), "{:04d}.jpg")
    found, _, manifest = mined(tmp_path, "demon")
    assert found in ([("a_scene", 0, 2)], [("a_scene", 1, 3)])
    assert manifest["totals"]["pairs_tried"] == 6


def test_street_view_3d(tmp_path):
    # PLACE/IMAGE.jpg: every pair inside the band.
    images = pan(11, 4, 20)
    for number, name in enumerate(["b", "a", "d", "c"]):
        write_images(tmp_path / "in" / "0001234", [images[number]], f"view_{name}.jpg")
    found, _, _ = mined(tmp_path, "street_view_3d")
    # In order of names a, b, c, d the camera was at 1, 0, 3, 2; inside the band are views two or three steps apart.
    assert sorted(found) == [("0001234", 0, 2), ("0001234", 1, 2), ("0001234", 1, 3)]


@pytest.fixture(scope="module")
def room():
    """A room that stands as files of the simulators' scans do."""
    return rooms.build_room(3, 0)


@pytest.mark.parametrize(
    ("preset", "file"),
    [
        ("hm3d", "train/00000-kfPV7w3FaU5/kfPV7w3FaU5"),
        ("gibson", "Allensville"),
        ("matterport", "17DRP5sb8fy/17DRP5sb8fy"),
    ],
)
def test_scans(tmp_path, room, preset, file):
    path = tmp_path / "in" / f"{file}.glb"
    path.parent.mkdir(parents=True)
    upright = room.copy()
    if PRESETS[preset]["up"] == "z":
        upright.apply_transform([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    path.write_bytes(upright.export(file_type="glb"))
    path.with_suffix(".semantic.glb").write_bytes(b"labels, not looks")
    path.with_suffix(".navmesh").write_bytes(b"of the simulator")
    found, pairs, manifest = mined(tmp_path, preset, samples=2)
    assert {name for name, _, _ in found} == {f"{file}/0000"}
    assert manifest["totals"]["scenes"] == 1
    for _, first, second in found:
        assert first // 24 == second // 24
        assert first % 24 < 8 <= second % 24
    assert all(0.5 <= pair.overlap <= 0.75 for pair in pairs)
    assert records.decode_image(pairs[0].view1).shape == (224, 224, 3)


def test_croco_scenes(tmp_path, room):
    path = tmp_path / "in" / "hall.glb"
    path.parent.mkdir(parents=True)
    path.write_bytes(room.export(file_type="glb"))
    _, pairs, manifest = mined(tmp_path, "croco_scenes", samples=12, up="y")
    assert manifest["settings"]["policy"] == "covisible"
    for pair in pairs:
        assert records.decode_image(pair.view1).shape == (256, 256, 3)
        assert len(pair.correspondence) == 256


def test_every_preset_is_here():
    named = {"mannequin", "arkitscenes", "objectron", "co3d", "scannet", "demon", "street_view_3d"}
    assert set(PRESETS) == named | {"hm3d", "gibson", "matterport", "croco_scenes"}


def table_of_sizes():
    """The table of docs/presets.md: pixels that each config reads, and the presets that store them."""
    found = {}
    for line in (ROOT / "docs" / "presets.md").read_text().splitlines():
        if line.startswith("| `") and ".py`" in line:
            names, size, commands = (cell.strip() for cell in line.strip("|").split("|"))
            presets = re.findall(r"`--preset=(\w+)`", commands)
            presets += [name for name in PRESETS if name != "croco_scenes"] if "MIMIC's presets" in commands else []
            sizes = [int(found) for found in re.findall(r"`--image_size=(\d+)`", commands)]
            for name in re.findall(r"`(\w+\.py)`", names):
                found[name] = int(size), presets, sizes
    return found


def test_presets_and_docs_store_what_the_configs_read():
    """A smaller view would be enlarged in training."""
    configs = {}
    for path in (ROOT / "configs").glob("*.py"):
        module = runpy.run_path(str(path))
        if "get_config" in module:
            configs[path.name] = module["get_config"]().data.size
    table = table_of_sizes()
    assert set(table) == set(configs)
    for name, size in configs.items():
        written, presets, sizes = table[name]
        assert written == size, name
        for preset in presets:
            assert choose("x", preset).image_size == size, (name, preset)
        assert all(given == size for given in sizes)
        assert presets or sizes or size <= choose("x").image_size, f"{name}: nothing stores what it reads"
    assert {preset for _, presets, _ in table.values() for preset in presets} == set(PRESETS)


def test_tables_of_rotations(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("scene,rotation\na/b,90\nc,270\n")
    assert read_table(table) == {"a/b": 90, "c": 270}
    for text in ("scene,rotation\na,45\n", "name,turn\na,90\n", "scene,rotation\na\n"):
        table.write_text(text)
        with pytest.raises(InputError, match="line 2"):
            read_table(table)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no table that can be read"):
        read_table(table)
