"""CroCo's listings of ready pairs, in both layouts; a listing may not name what is outside its folder."""

import os
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_prep.settings import Settings
from data_prep.sources import croco_listing
from data_prep.sources.scene import SceneProblem
from mimic_jax.command import InputError

SETTINGS = Settings("name", source="croco_listing", policy="ready")
MISSING = "image cannot be opened (No such file or directory)"


def jpeg(seed):
    image = cv2.resize(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8), (32, 32))
    return cv2.imencode(".jpg", image)[1].tobytes()


def write_images(folder, stem, suffix, seed):
    for view in (1, 2):
        path = folder / f"{stem}_{view}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(2 * seed + view))


def views(scene):
    return [(pair.view1, pair.view2) for pair in scene.samples()]


def reasons(scene):
    return [pair.problem for pair in scene.samples()]


def seeded(*seeds):
    return [(jpeg(2 * seed + 1), jpeg(2 * seed + 2)) for seed in seeds]


@pytest.fixture
def release(tmp_path):
    """Both layouts, nested, with and without suffixes, in mixed order."""
    habitat = tmp_path / "data" / "habitat_release"
    for seed, stem in enumerate(("b/10", "a/s9/1", "a/s10/1", "a/s9/2")):
        write_images(habitat, stem, ".jpeg", seed)
    (habitat / "pairs.txt").write_text(
        "b/10_1.jpeg b/10_2.jpeg\na/s9/1_1 a/s9/1_2\r\n# a comment\n\na/s10/1_1.jpeg\ta/s10/1_2\na/s9/2_1 a/s9/2_2"
    )
    crops = tmp_path / "data" / "x_crops"
    for seed, stem in enumerate(("0", "a b/é 1", "0.5")):
        write_images(crops, stem, ".jpg", 10 + seed)
    (crops / "listing.txt").write_text("# stems\n0\na b/é 1\n0.5\n")
    return tmp_path / "data"


def test_listings_of_a_folder(release):
    scenes = croco_listing.scenes(release, SETTINGS)
    assert {scene.name: views(pickle.loads(pickle.dumps(scene))) for scene in scenes} == {
        "habitat_release/pairs.txt/a/s9/0": seeded(1, 3),
        "habitat_release/pairs.txt/a/s10/0": seeded(2),
        "habitat_release/pairs.txt/b/0": seeded(0),
        "x_crops/listing.txt/0": seeded(10, 12),
        "x_crops/listing.txt/a b/0": seeded(11),
    }
    names = [scene.name for scene in scenes]
    assert names.index("habitat_release/pairs.txt/a/s9/0") < names.index("habitat_release/pairs.txt/a/s10/0")
    assert [scene.input_size for scene in scenes] == [len(views(scene)) for scene in scenes]
    for pair in (pair for scene in scenes for pair in scene.samples()):
        assert (pair.problem, pair.correspondence, pair.frame1, pair.frame2) == (None, None, -1, -1)


def test_one_listing(release):
    (first, *_) = croco_listing.scenes(release / "habitat_release" / "pairs.txt", SETTINGS)
    assert (first.name, views(first)) == ("pairs.txt/a/s9/0", seeded(1, 3))
    (first, *_) = croco_listing.scenes(release / "x_crops", SETTINGS)
    assert (first.name, views(first)) == ("listing.txt/0", seeded(10, 12))


def test_a_thousand_pairs_a_scene_and_appended_ones(tmp_path):
    for seed in (0, 1):
        write_images(tmp_path, str(seed), ".jpg", seed)
    listing = tmp_path / "listing.txt"
    listing.write_text("0\n" * 1999 + "1\n")
    before = croco_listing.scenes(listing, SETTINGS)
    assert [(scene.name, scene.input_size) for scene in before] == [("listing.txt/0", 1000), ("listing.txt/1", 1000)]
    assert views(before[1]) == seeded(*[0] * 999, 1)
    assert len(pickle.dumps(before[0])) < 8 * 1000 + 1000
    with listing.open("a") as file:
        file.write("0\n" * 3)
    after = croco_listing.scenes(listing, SETTINGS)
    assert [(scene.name, scene.input_size) for scene in after[:2]] == [(scene.name, 1000) for scene in before]
    assert (after[2].name, views(after[2])) == ("listing.txt/2", seeded(0, 0, 0))


def test_other_images_become_jpegs_of_the_quality_asked_for(tmp_path):
    grey = np.full((8, 8), 77, np.uint8)
    for view in (1, 2):
        cv2.imwrite(str(tmp_path / f"a_{view}.png"), grey)
    (tmp_path / "pairs.txt").write_text("a_1.png a_2.png\n")
    (scene,) = croco_listing.scenes(tmp_path, SETTINGS)
    ((view1, _),) = views(scene)
    assert np.abs(cv2.imdecode(np.frombuffer(view1, np.uint8), cv2.IMREAD_UNCHANGED).astype(int) - 77).max() <= 2


LEAVES = "line leaves the listing's folder"
NO_PAIR = "line does not name a pair"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"ok_1 ok_2", None),
        (b"ok_1.jpg ok_2.jpg", None),
        (b"./ok_1 sub/..ok_2", MISSING),
        (b"ok_1 gone_2", MISSING),
        (b"ok_1.jpeg ok_2.jpeg", MISSING),
        (b"ok_1 ../outside_2", LEAVES),
        (b"sub/../../outside_1 ok_2", LEAVES),
        (b"ok_1 ..", LEAVES),
        (b"/etc/passwd ok_2", LEAVES),
        (b"ok_1\t/dev/zero", LEAVES),
        (b"gs://bucket/ok_1 ok_2", LEAVES),
        (b"ok_1", NO_PAIR),
        (b"ok_1 ok_2 ok_3", NO_PAIR),
        (b"ok_1\t", NO_PAIR),
        (b"ok_1 ok\0_2", NO_PAIR),
        (b"9" * 5000 + b" ok_2", NO_PAIR),
        (b"ok_1 \xff", "line is not UTF-8"),
        (b"ok_1 truncated_2", "image cannot be decoded"),
        (b"ok_1 pipe_2.jpg", "not a regular file"),
        (b"ok_1 folder.jpg", "not a regular file"),
        (b"ok_1 loop_2.jpg", "image cannot be opened (Too many levels of symbolic links)"),
        (b"ok_1 " + b"x" * 300, "image cannot be opened (File name too long)"),
        (b"ok_1 -rf_2", None),
    ],
)
def test_lines_of_pairs(tmp_path, line, reason):
    folder = tmp_path / "listed"
    write_images(folder, "ok", ".jpg", 0)
    write_images(folder, "-rf", ".jpeg", 0)
    write_images(tmp_path, "outside", ".jpg", 0)
    (folder / "truncated_2.jpg").write_bytes(jpeg(0)[:-20])
    os.mkfifo(folder / "pipe_2.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "loop_2.jpg").symlink_to("loop_2.jpg")
    (folder / "pairs.txt").write_bytes(b"ok_1 ok_2\n" + line + b"\nok_1 ok_2\n")
    found = [reason for scene in croco_listing.scenes(folder, SETTINGS) for reason in reasons(scene)]
    assert sorted(found, key=str) == sorted([None, None, reason], key=str)


@pytest.mark.parametrize("line", [b"../outside", b"/tmp/outside", b"sub/../../outside"])
def test_stems_that_leave_the_folder(tmp_path, line):
    write_images(tmp_path, "outside", ".jpg", 0)
    (tmp_path / "c_crops").mkdir()
    (tmp_path / "c_crops" / "listing.txt").write_bytes(line + b"\n")
    (scene,) = croco_listing.scenes(tmp_path, SETTINGS)
    assert (scene.name, reasons(scene)) == ("c_crops/listing.txt/0", [LEAVES])


def test_what_is_no_listing(tmp_path):
    (tmp_path / "other.txt").write_text("0\n")
    with pytest.raises(InputError, match=r"reads files named pairs\.txt or listing\.txt"):
        croco_listing.scenes(tmp_path / "other.txt", SETTINGS)
    with pytest.raises(InputError, match=r"no pairs\.txt or listing\.txt in it"):
        croco_listing.scenes(tmp_path, SETTINGS)
    (tmp_path / "listing.txt").write_text("# nothing\n\n")
    with pytest.raises(InputError, match="no pairs listed in it"):
        croco_listing.scenes(tmp_path, SETTINGS)


def test_a_listing_that_is_a_pipe_or_a_link_to_nothing_is_counted(release):
    os.mkfifo(release / "pairs.txt")
    (release / "listing.txt").symlink_to("gone")
    scenes = {scene.name: scene for scene in croco_listing.scenes(release, SETTINGS)}
    for name in ("pairs.txt/", "listing.txt/"):
        with pytest.raises(SceneProblem, match="listing cannot be read"):
            list(scenes[name].samples())
    assert len(scenes) == 5 + 2


@hypothesis_settings(max_examples=500)
@given(
    st.booleans(),
    st.lists(st.sampled_from([b"a", b"_1", b" ", b"/", b"\n", b"\r", b"#", b"..", b"\0", b"\xff", b"\t"])),
)
def test_any_listing_is_read_whole(tmp_path_factory, stems, pieces):
    path = tmp_path_factory.mktemp("any") / ("listing.txt" if stems else "pairs.txt")
    content = b"".join(pieces)
    path.write_bytes(content + b"\nlast_1 last_2\n")
    lines = [line for line in content.split(b"\n") if line.strip() and not line.startswith(b"#")]
    scenes = croco_listing.scenes(path, SETTINGS)
    assert sum(scene.input_size for scene in scenes) == len(lines) + 1
    assert len({scene.name for scene in scenes}) == len(scenes)
    for scene in scenes:
        found = reasons(scene)
        assert len(found) == scene.input_size
        assert all(found)
