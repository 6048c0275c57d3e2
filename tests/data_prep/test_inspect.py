"""The tables against a manifest written by hand, and against what mining really leaves."""

import json

import cv2
import numpy as np
import pytest

from data_prep.inspect import read_manifest, readable_size
from data_prep.report import collect
from mimic_jax import records
from mimic_jax.command import InputError
from tests import commands
from tests.datasets import make_pair, write_dataset


def run(module, *arguments):
    done = commands.run([f"data_prep.{module}", *arguments], environment={"COLUMNS": "160"})
    return done.returncode, done.stdout, done.stderr


def rows(output):
    """The cells of every row of every table."""
    lines = (line.strip() for line in output.splitlines())
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def entry(kept, tried, source="films", problems=None):
    return {
        "input_size": 1, "source": source, "frames_read": 10 * tried, "pairs_tried": tried, "pairs_kept": kept,
        "rejected": {"too few matches": tried - kept}, "problems": problems or {},
    }  # fmt: skip


def write_manifest(folder, scenes, settings=None, **more):
    counts = {key: sum(scene[key] for scene in scenes.values()) for key in ("frames_read", "pairs_tried", "pairs_kept")}
    totals = {
        "scenes": len(scenes), **counts, "rejected": {"too few matches": counts["pairs_tried"] - counts["pairs_kept"]},
        "problems": {},
    }  # fmt: skip
    manifest = {"settings": settings or {"name": "films", "step": 0.5}, "versions": {"opencv": "5.0.0"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"totals": totals | more, "scenes": scenes}))


@pytest.fixture
def dataset(tmp_path):
    """Six pairs in two shards, of twelve scenes from two sources; two scenes have problems."""
    folder = tmp_path / "pairs"
    write_dataset(folder, [make_pair(seed) for seed in range(6)], shards=2)
    scenes = {f"scene{number}": entry(0, 2 + number) for number in range(10)}
    scenes["scene3"] = entry(4, 8, problems={"frame cannot be read": 7})
    scenes["\x1b[31mred [bold]"] = entry(2, 2, "photos", {"image too large": 1, "no\nframes": 2})
    scenes["last"] = entry(0, 0)
    settings = {"merged": [{"name": "films", "step": 0.5}, {"name": "photos", "step": 0.5}]}
    write_manifest(folder, scenes, settings, **{"yield": {"anchors": 8, "kept": 6, "at the fixed step": 2}})
    return folder


def test_the_tables(dataset):
    code, out, err = run("inspect", dataset, "--scenes=2")
    assert (code, err) == (0, "")
    assert "\x1b" not in out, "a name must not colour the terminal"
    found = rows(out)
    size = sum(path.stat().st_size for path in dataset.iterdir())
    for expected in [
        ["pairs kept", "6"],
        # 2 + … + 11 tried, but 8 in place of 5, and 2.
        ["pairs tried", "70"],
        ["yield", "8.6%"],
        ["anchors with a partner", "75.0%"],
        ["… at the fixed step", "25.0%"],
        ["frames read", "700"],
        ["scenes", "12"],
        ["shards", "2, of 3 pairs"],
        ["size on disk", readable_size(size)],
        ["name", "films | photos"],
        ["step", "0.5"],
        ["opencv", "5.0.0"],
        ["too few matches", "64", "91.4%"],
        ["films", "680", "68", "4", "5.9%"],
        ["photos", "20", "2", "2", "100.0%"],
        ["scene3", "frame cannot be read", "7"],
        ["\\x1b[31mred [bold]", "image too large", "1"],
        ["\\x1b[31mred [bold]", "no\\nframes", "2"],
    ]:
        assert expected in found
    most = [row[0] for row in found if len(row) == 5]
    assert most[2:] == ["scene3", "\\x1b[31mred [bold]", "last", "scene9"]
    code, out, _ = run("inspect", dataset, "--scenes=1")
    assert "… and 1 more (--scenes=N)" in out


def test_a_shard_that_is_missing_is_named(dataset):
    missing = dataset / records.shard_name("train", 1, 2)
    missing.unlink()
    code, out, _ = run("inspect", dataset)
    assert code == 0
    assert ["shards that are missing", f"1: {missing.name}"] in rows(out)


def test_no_pair_was_kept(tmp_path):
    write_manifest(tmp_path / "d", {"a": entry(0, 5)})
    code, out, err = run("inspect", tmp_path / "d")
    assert (code, err) == (0, "")
    assert ["pairs kept", "0"] in rows(out)
    assert ["too few matches", "5", "100.0%"] in rows(out)
    assert ["a", "50", "5", "0", "0.0%"] in rows(out)


def test_what_mining_leaves(tmp_path):
    """A pan over a texture, mined adaptively; counts of the films are known, and the tables and the page agree."""
    rng = np.random.default_rng(0)
    strip = np.full((120, 900, 3), 128, np.uint8)
    for _ in range(900):
        centre, radius = (int(rng.integers(900)), int(rng.integers(120))), int(rng.integers(2, 14))
        cv2.circle(strip, centre, radius, rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    for scene in ("left", "right"):
        (tmp_path / "in" / scene).mkdir(parents=True)
        for number in range(30):
            cv2.imwrite(str(tmp_path / "in" / scene / f"{number}.png"), strip[:, 20 * number : 20 * number + 160])
    output = tmp_path / "pairs"
    code, _, err = run("mine", "--source=frames", f"--input={tmp_path / 'in'}", f"--output={output}", "--step=3")
    assert (code, err) == (0, "")
    kept = len(records.open_dataset(output))
    code, out, err = run("inspect", output)
    assert (code, err) == (0, "")
    found = rows(out)
    for expected in [["pairs kept", f"{kept}"], ["frames read", "60"], ["policy", "adaptive"], ["scenes", "2"]]:
        assert expected in found
    assert {row[0] for row in found if len(row) == 5} == {"left", "right"}
    # An anchor every three of 30 frames, each scene.
    assert ["anchors with a partner", f"{kept / 20:.1%}"] in found
    data = collect(output)
    (source,) = data["sources"]
    assert (source["kept"], source["frames"], source["yield"]["anchors"]) == (kept, 60, 20)
    assert len(data["gallery"]) == kept
    assert all(0.5 <= shown["matched"] / 196 <= 0.75 for shown in data["gallery"])


def test_one_clear_line_for_each_mistake(tmp_path, dataset):
    for name in ("empty", "begun", "broken", "list", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / ".parts").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"scenes": ')
    (tmp_path / "list" / "manifest.json").write_text("[1]")
    (tmp_path / "old" / "manifest.json").write_text(
        '{"settings": {}, "versions": {}, "totals": {}, "scenes": {"a": 1}}'
    )
    (tmp_path / "file").write_text("")
    for name, message in [
        ("none", "no such dataset folder"),
        ("file", "no such dataset folder"),
        ("empty", "manifest.json: missing"),
        ("begun", "not finished; give the command"),
        ("broken", "manifest.json: damaged"),
        ("list", "not a manifest"),
        ("old", "not a manifest"),
    ]:
        with pytest.raises(InputError, match=message):
            read_manifest(tmp_path / name)
    (dataset / "dataset_info.json").write_text("{}")
    for arguments, message in [
        ([tmp_path / "broken"], "damaged"),
        ([dataset], "dataset_info.json: damaged"),
        ([], "DATASET missing"),
        ([dataset, "--scenes=-1"], "scenes"),
    ]:
        code, _, err = run("inspect", *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err


def test_readable_sizes():
    for count, text in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_340_000, "12.3 MB"), (2 * 10**15, "2.0 PB")]:
        assert readable_size(count) == text
