"""The page against the records it was made from: as data, and as Chromium shows it."""

import dataclasses
import html.parser
import json
import shutil
from base64 import b64decode

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.report import PICTURES, Drawn, choose, report
from mimic_jax import records
from mimic_jax.command import InputError
from tests import commands
from tests.browser import Browser
from tests.datasets import make_pair, write_dataset

ATTACK = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 2'>"
SETTINGS = {"source": "video", "policy": "step", "min_overlap": 0.25, "max_overlap": 0.75, "patch_size": 16}


def entry(source, kept, tried, problems=None, **more):
    rejected = {"overlap above band": tried - kept} if tried > kept else {}
    return {
        "source": source, "frames_read": tried + 1, "pairs_tried": tried, "pairs_kept": kept, "rejected": rejected,
        "problems": problems or {}, **more,
    }  # fmt: skip


def write_manifest(folder, settings, scenes):
    total = {"frames_read": 0, "pairs_tried": 0, "pairs_kept": 0}
    for scene in scenes.values():
        total = {key: total[key] + scene[key] for key in total}
    totals = {"scenes": len(scenes), **total, "rejected": {}, "problems": {}}
    manifest = {"settings": settings, "versions": {"numpy": "2"}, "totals": totals, "scenes": scenes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def numbered(seed, scene, matched=None, patches=16):
    """A pair whose first `matched` patches map to themselves in reverse order; None: nothing is known."""
    correspondence = np.full(patches, -1, np.int16)
    if matched is not None:
        correspondence[:matched] = np.arange(patches)[::-1][:matched]
    overlap = float("nan") if matched is None else matched / patches
    return dataclasses.replace(make_pair(seed, scene=scene), correspondence=correspondence, overlap=overlap)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Two sources, merged, in two shards: films with one hostile name, and ready pairs of which nothing is known."""
    folder = tmp_path_factory.mktemp("report") / "my pairs"
    pairs = [numbered(seed, "Kitchen", 4 + seed % 9) for seed in range(40)]
    pairs += [numbered(seed, ATTACK, 10) for seed in range(40, 46)]
    pairs += [numbered(seed, "hall", None) for seed in range(46, 50)]
    # `write_dataset` deals to the shards in turn.
    write_dataset(folder, [pair for both in zip(pairs[:25], pairs[25:], strict=True) for pair in both], shards=2)
    ready = {"name": "released", "source": "mimic_release", "policy": "ready", "min_overlap": 0.5, "max_overlap": 0.75}
    counts = {"anchors": 80, "at the fixed step": 20, "kept": 40}
    scenes = {
        "films/Kitchen": entry("films", 40, 160, **{"yield": counts}),
        f"films/{ATTACK}": entry("films", 6, 6, {"frame cannot be read": 3}),
        "films/empty": entry("films", 0, 0, {"no frames": 1}),
        "released/hall": entry("released", 4, 4),
    }
    write_manifest(folder, {"merged": [{"merged": [{"name": "films", **SETTINGS}]}, ready]}, scenes)
    return folder, pairs


class Page(html.parser.HTMLParser):
    """The data of a page, and its elements' names."""

    def __init__(self, path):
        super().__init__()
        self.elements, self._inside, self.data = [], False, None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self._inside = ("id", "data") in attributes

    def handle_data(self, data):
        if self._inside:
            self.data, self._inside = json.loads(data), False


@pytest.fixture(scope="module")
def page(merged, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "réport #1.html"
    report(merged[0], path)
    return path


def test_the_data_are_those_of_the_records(page, merged):
    _, pairs = merged
    found = Page(page)
    assert found.elements.count("script") == 4
    data = found.data
    assert data["count"] == len(pairs) == len(data["sample"])
    names = [scene["name"] for scene in data["scenes"]]
    expected = sorted(
        (f"{'released' if pair.scene == 'hall' else 'films'}/{pair.scene}", None if pair.overlap != pair.overlap else
         int((pair.correspondence >= 0).sum()))
        for pair in pairs if pair.scene != "hall"
    )  # fmt: skip
    drawn = [(names[scene], matched) for _, scene, matched in data["sample"]]
    assert sorted(each for each in drawn if each[1] is not None) == expected
    assert drawn.count(("released/hall", None)) == 4
    # All fit: each pair once, with its own frame, patches and pictures.
    assert sorted(shown["frames"][0] for shown in data["gallery"]) == list(range(50))
    for shown in data["gallery"]:
        pair = pairs[shown["frames"][0]]
        assert data["scenes"][shown["scene"]]["name"].split("/", 1)[1] == pair.scene
        assert shown["inliers"] == pair.inliers
        assert shown["matches"] == (None if pair.scene == "hall" else pair.correspondence.tolist())
        for jpeg, original in zip(shown["views"], (pair.view1, pair.view2), strict=True):
            difference = records.decode_image(b64decode(jpeg)).astype(int) - records.decode_image(original)
            assert np.abs(difference).mean() < 4
    films, released = data["sources"]
    assert (films["name"], films["scenes"], films["kept"], films["tried"], films["frames"]) == (
        "films", 3, 46, 166, 169
    )  # fmt: skip
    assert films["yield"] == {"anchors": 80, "at the fixed step": 20, "kept": 40}
    assert (released["kept"], released["tried"]) == (4, 4)
    # Ready pairs are taken whatever their overlap.
    assert data["bands"] == [{"source": 0, "low": 0.25, "high": 0.75}]


def test_a_sample_of_a_large_dataset(tmp_path):
    """More records than are read, many scenes, pictures too many for the page."""
    rng = np.random.default_rng(0)
    scenes = [f"room {number}" for number in range(300)]
    matched = rng.integers(0, 17, 3000)
    view = make_pair(0).view1
    pairs = [
        dataclasses.replace(
            numbered(0, scenes[place // 10], count), frame1=place, frame2=place + 1, view1=view, view2=view
        )
        for place, count in enumerate(matched)
    ]
    write_dataset(tmp_path / "d", pairs, shards=1)
    write_manifest(tmp_path / "d", {"name": "tést", **SETTINGS}, {scene: entry("tést", 10, 20) for scene in scenes})
    report(tmp_path / "d", tmp_path / "d.html", sample=400)
    data = Page(tmp_path / "d.html").data
    assert (len(data["sample"]), data["count"]) == (400, 3000)
    assert len(data["gallery"]) == PICTURES["pairs"]
    for shown in data["gallery"]:
        place = shown["frames"][0]
        assert shown["matched"] == matched[place]
        assert data["scenes"][shown["scene"]]["name"] == scenes[place // 10]
    counts = np.array([each[2] for each in data["sample"]])
    # 400 draws from all: their mean is within four standard errors of the mean of all.
    assert abs(counts.mean() - matched.mean()) < 4 * matched.std() / 20
    shown = np.sort([each["matched"] for each in data["gallery"]])
    assert (shown[:36] == np.sort(counts)[:36]).all()
    assert (shown[-36:] == np.sort(counts)[-36:]).all()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 196))), max_size=60),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.integers(6, 40),
)
def test_chosen_pictures(records_of, source_of, limit):
    drawn = [Drawn(place, scene, matched) for place, (scene, matched) in enumerate(records_of)]
    chosen = choose(drawn, source_of, limit)
    places = [each.place for each, _ in chosen]
    assert len(set(places)) == len(places) <= limit
    assert {each.place for each, _ in chosen} <= {each.place for each in drawn}
    if drawn and limit >= 4 * 3 * 4:
        assert {each.scene for each, _ in chosen} == {each.scene for each in drawn}
    known = [each.matched for each in drawn if each.matched is not None]
    if known:
        assert {min(known), max(known)} <= {each.matched for each, _ in chosen}


def test_damaged_records_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    noise = [records.encode_image(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(20)]
    pairs = [dataclasses.replace(numbered(seed, "a", 8), view1=noise[seed]) for seed in range(20)]
    (shard,) = write_dataset(tmp_path / "d", pairs, shards=1)
    write_manifest(tmp_path / "d", {"name": "n", **SETTINGS}, {"a": entry("n", 20, 20)})
    path = tmp_path / "d" / records.shard_name("train", 0, 1)
    content = bytearray(path.read_bytes())
    # In the middle of one record, where no other has the same bytes.
    place = content.find(shard[5].view1[1500:1600])
    assert place > 0
    content[place : place + 100] = bytes(100)
    path.write_bytes(content)
    report(tmp_path / "d", tmp_path / "d.html")
    data = Page(tmp_path / "d.html").data
    assert data["unreadable"] == 1
    assert sorted(shown["frames"][0] for shown in data["gallery"]) == [seed for seed in range(20) if seed != 5]


def test_views_that_are_no_images_and_views_too_large(tmp_path):
    wide = records.encode_image(cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8), (1600, 800)))
    pair = dataclasses.replace(numbered(0, "a", 8), view1=b"\xff\xd8 no image", view2=wide)
    write_dataset(tmp_path / "d", [pair], shards=1)
    write_manifest(tmp_path / "d", {"name": "n", **SETTINGS}, {"a": entry("n", 1, 1)})
    report(tmp_path / "d", tmp_path / "d.html")
    (shown,) = Page(tmp_path / "d.html").data["gallery"]
    assert shown["views"][0] is None
    assert records.decode_image(b64decode(shown["views"][1])).shape == (160, 320, 3)


def test_one_clear_line_for_each_mistake(tmp_path, merged):
    def run(*arguments):
        done = commands.run(["data_prep.report", *arguments])
        return done.returncode, done.stdout, done.stderr

    code, out, err = run(merged[0])
    assert (code, err) == (0, "")
    assert "my pairs.html" in out
    # Beside the folder: in it nothing is added.
    assert (merged[0].parent / "my pairs.html").is_file()
    assert len(list(merged[0].iterdir())) == 2 + 3
    for arguments, message in [
        ([tmp_path / "none"], "no such dataset folder"),
        ([merged[0], f"--output={merged[0]}"], "cannot be written"),
        ([], "DATASET missing"),
    ]:
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    other = tmp_path / "other"
    shutil.copytree(merged[0], other)
    write_manifest(other, {"name": "films", **SETTINGS}, {"Kitchen": entry("films", 40, 160)})
    with pytest.raises(InputError, match=r"manifest\.json is not of these shards"):
        report(other, tmp_path / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(names)} to test the page as it is shown")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def bars(browser):
    """First patch count of each bar of the histogram and how many pairs it stands for."""
    return dict(
        browser.value("[...document.querySelectorAll('.bar')].map(bar => [+bar.dataset.first, +bar.dataset.count])")
    )


def edges_of(browser, part):
    """Where a part of the histogram begins and ends on the screen, from left to right."""
    box = f"document.querySelector({json.dumps('#histogram ' + part)}).getBoundingClientRect()"
    return browser.value(f"[{box}.left, {box}.right]")


def figures(browser):
    return browser.value("[...document.querySelectorAll('figcaption')].map(each => each.innerText)")


def test_chromium_shows_the_page_without_complaint(browser, page, merged):
    browser.open(page)
    assert browser.complaints() == []
    assert browser.value("window.owned") is None
    assert browser.text("h1") == "my pairs"
    # Neither a script nor an image was made of the hostile name: it is there to be read.
    assert ATTACK in browser.text("#scenes")
    assert "pairs kept\n50\n" in browser.text("#tiles")
    assert "pairs tried\n170\n" in browser.text("#tiles")
    assert "of anchor frames found a partner\n50 %\n" in browser.text("#tiles")
    assert "would have at the fixed step\n25 %" in browser.text("#tiles")
    assert "overlap above band\n120 · 70.6 %" in browser.text("#reasons")
    assert "frame cannot be read: 3" in browser.text("#problems")
    counts = np.array([(pair.correspondence >= 0).sum() for pair in merged[1] if pair.scene != "hall"])
    # With 16 patches a bar is one patch wide.
    expected, _ = np.histogram(counts, np.arange(18) - 0.5)
    assert bars(browser) == {count: pairs for count, pairs in enumerate(expected.tolist()) if pairs}
    # The band, 25 to 75 % of 16 patches, reaches from the bar of 4 to that of 12.
    band, low, high = (edges_of(browser, each) for each in (".band", "[data-first='4']", "[data-first='12']"))
    assert band == pytest.approx([low[0], high[1]], abs=2)
    assert "Of 4 the overlap is not known." in browser.text("#overlap-note")


@pytest.mark.parametrize(
    ("directive", "fetch"),
    [("img-src", "new Image().src = 'http://127.0.0.1:9/x'"), ("connect-src", "fetch('http://127.0.0.1:9/x')")],
)
def test_the_page_cannot_fetch_anything(browser, page, directive, fetch):
    browser.open(page)
    refused = browser.value(f"""new Promise(done => {{
        document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));
        setTimeout(() => done('nothing was refused'), 3000);
        {fetch} }})""")
    assert refused == directive


def test_an_error_in_a_page_would_be_seen(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing.there</script><script>console.error('x')</script><img src='http://127.0.0.1:9/x'>")
    browser.open(page)
    methods = [event["method"] for event in browser.complaints()]
    assert {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.requestWillBeSent"} <= set(methods)


def test_filters(browser, page):
    browser.open(page, "source=released")
    assert "pairs kept\n4\n" in browser.text("#tiles")
    assert len(figures(browser)) == 4
    assert all("overlap not known" in text for text in figures(browser))
    assert bars(browser) == {}
    assert browser.text("#scenes tbody").startswith("released/hall")
    # A part of a name, in any case.
    browser.open(page, "scene=KITCH&order=lowest")
    assert "pairs kept\n40\n" in browser.text("#tiles")
    assert "pairs tried\n160\n" in browser.text("#tiles")
    assert len(figures(browser)) == 12
    assert ["25 %" in text.replace("\u00a0", " ") for text in figures(browser)] == [True] * 5 + [False] * 7
    # As a person does: the control, then the address shows it.
    browser.value("document.getElementById('clear').click()")
    assert "pairs kept\n50\n" in browser.text("#tiles")
    browser.value("""{const source = document.getElementById('source'); source.value = '0';
        source.dispatchEvent(new Event('change'))}""")
    assert "pairs kept\n46\n" in browser.text("#tiles")
    assert browser.value("location.hash") == "#source=films&order=lowest"
    browser.value("document.getElementById('scene').focus()")
    browser.call("Input.insertText", text="nowhere")
    assert "pairs kept\n0\n" in browser.text("#tiles")
    assert "No pair of this choice" in browser.text("#gallery-note")
    assert browser.complaints() == []


def corner_of(browser, view):
    """Left, top, width and height of a view of the first pair, on the screen."""
    return browser.value(f"""(() => {{
        const canvas = document.querySelectorAll('canvas')[{view}];
        canvas.scrollIntoView({{block: 'center'}});
        const box = canvas.getBoundingClientRect();
        return [box.left, box.top, box.width, box.height] }})()""")


def bright_patches(picture, box):
    """Which of the 16 patches of a view have white just around them."""
    left, top, width, height = box
    found = set()
    for patch in range(16):
        x, y = left + patch % 4 * width / 4, top + patch // 4 * height / 4
        # The middle of the patch's upper and lower edge, a few pixels to either side.
        edges = [picture[round(edge) - 4 : round(edge) + 5, round(x + width / 8)] for edge in (y, y + height / 4)]
        if all(edge.min(axis=-1).max() > 240 for edge in edges):
            found.add(patch)
    return found


def test_pointing_at_a_patch_shows_its_match(browser, tmp_path):
    grey = records.encode_image(np.full((64, 64, 3), 90, np.uint8))
    correspondence = np.full(16, -1, np.int16)
    correspondence[[5, 6]] = [10, 5]
    pair = dataclasses.replace(
        numbered(0, "a", 8), view1=grey, view2=grey, correspondence=correspondence, overlap=2 / 16
    )
    write_dataset(tmp_path / "d", [pair], shards=1)
    write_manifest(tmp_path / "d", {"name": "n", **SETTINGS}, {"a": entry("n", 1, 1)})
    report(tmp_path / "d", tmp_path / "d.html")
    browser.open(tmp_path / "d.html")

    def shown():
        boxes = [corner_of(browser, view) for view in (0, 1)]
        picture = browser.picture()
        return tuple(bright_patches(picture, box) for box in boxes)

    def move(view, patch):
        left, top, width, height = corner_of(browser, view)
        x, y = left + (patch % 4 + 0.5) * width / 4, top + (patch // 4 + 0.5) * height / 4
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    assert shown() == (set(), set())
    move(0, 5)
    assert shown() == ({5}, {10})
    assert "row 2, column 2 → row 3, column 3" in browser.text("figcaption")
    move(1, 5)
    assert shown() == ({6}, {5})
    move(0, 0)
    assert shown() == ({0}, set())
    assert "row 1, column 1 of view 1 has no match" in browser.text("figcaption")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert shown() == (set(), set())
    # With the keyboard: the first patch that has a match, then the one to its right.
    browser.value("document.querySelector('.views').focus()")
    for key, first, second in [("ArrowDown", 5, 10), ("ArrowRight", 6, 5)]:
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
        assert shown() == ({first}, {second})

    # All of them: matched patches are tinted, the others darker than the picture.
    browser.open(tmp_path / "d.html", "patches=all")
    for view, matched in enumerate([{5, 6}, {10, 5}]):
        left, top, width, height = corner_of(browser, view)
        picture = browser.picture()
        colours = [
            picture[round(top + (patch // 4 + 0.5) * height / 4), round(left + (patch % 4 + 0.5) * width / 4)]
            for patch in range(16)
        ]
        assert {patch for patch in range(16) if np.ptp(colours[patch].astype(int)) > 20} == matched
        assert all(colours[patch].max() < 60 for patch in set(range(16)) - matched)
    assert browser.complaints() == []


def test_a_run_that_kept_nothing_has_a_page(browser, tmp_path):
    write_manifest(tmp_path / "d", {"name": "n", **SETTINGS}, {"a": entry("n", 0, 7), "b": entry("n", 0, 0)})
    report(tmp_path / "d", tmp_path / "d.html")
    browser.open(tmp_path / "d.html")
    assert browser.complaints() == []
    assert "overlap above band\n7 · 100 %" in browser.text("#reasons")
    assert browser.text("#overlap-note") == "No pair was kept."


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2200])
def test_nothing_is_wider_than_the_window(browser, page, width):
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        browser.open(page, "patches=all")
        assert browser.value("document.documentElement.scrollWidth") <= width
    finally:
        browser.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
