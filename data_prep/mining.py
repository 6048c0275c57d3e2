"""The pairs of one scene."""

import collections
import dataclasses
import functools
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep import dataset, matching, overlap, workers
from data_prep.building import CRASHED
from data_prep.matching import Image, Match, Reason
from data_prep.policies import POLICIES, Comparison, Frame
from data_prep.settings import UNTESTED, Settings
from data_prep.sources.scene import ReadyPair, Scene, SceneProblem
from mimic_jax import records

_NO_HOMOGRAPHY = np.full((3, 3), np.nan)


@dataclasses.dataclass
class Tally:
    """What happened to a scene: counts of frames read, pairs tried and kept, of pairs `rejected` by reason, of
    `problems` by kind, and what the policy counted besides (`yields`)."""

    frames_read: int = 0
    pairs_tried: int = 0
    pairs_kept: int = 0
    rejected: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    problems: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    yields: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def mine_scene(scene: Scene, settings: Settings, tally: Tally) -> Iterator[records.Pair]:
    """The pairs of one scene, in the policy's order, as they are found; fills `tally` on the way.

    A function of the scene and the settings alone; never raises for what it cannot read.
    """
    with_ready = settings.policy in (*UNTESTED, "tested")
    try:
        for pair in (_ready_pairs if with_ready else _mined_pairs)(scene, settings, tally):
            tally.pairs_kept += 1
            yield pair
    except SceneProblem as problem:
        tally.problems[str(problem)] += 1
    left = tally.pairs_tried - tally.pairs_kept - tally.rejected.total()
    if left:
        tally.rejected[Reason.NOT_CHOSEN.value] += left
    if tally.frames_read == 1:
        tally.problems["only one frame"] += 1
    elif tally.frames_read == 0 and not tally.problems:
        tally.problems["no frames"] += 1


def _mined_pairs(scene: Scene, settings: Settings, tally: Tally) -> Iterator[records.Pair]:
    jpegs: weakref.WeakKeyDictionary[Frame, bytes] = weakref.WeakKeyDictionary()

    def jpeg(frame: Frame) -> bytes:
        if frame not in jpegs:
            jpegs[frame] = records.encode_image(frame.image, settings.quality)
        return jpegs[frame]

    frames = _frames(scene, settings, tally)
    compare = functools.partial(match_frames, settings=settings, tally=tally)
    for kept in POLICIES[settings.policy](frames, compare, settings, tally.yields):
        first, second = kept.first, kept.second
        yield _pair(scene, settings, kept.match, jpeg(first), jpeg(second), first.number, second.number)


def _frames(scene: Scene, settings: Settings, tally: Tally) -> Iterator[Frame]:
    for sample in _until_unreadable(scene.samples(), tally):
        if sample.image is None or sample.image.size == 0:
            tally.problems[sample.problem if sample.image is None else "frame without pixels"] += 1
            continue
        image = prepare(sample.image, settings, scene.rotation)
        tally.frames_read += 1
        yield _frame(image, settings, sample.number, sample.tick)


def _frame(image: Image, settings: Settings, number: int, tick: int) -> Frame:
    return Frame(number, tick, image, functools.partial(matching.detect, matcher=settings.matcher))


def _until_unreadable(samples: Iterable[Any], tally: Tally) -> Iterator[Any]:
    """One scene's disk or pictures must not end the run; what was yielded before stands."""
    try:
        yield from samples
    except SceneProblem as problem:
        tally.problems[str(problem)] += 1
    except OSError as error:
        tally.problems[f"cannot be read ({error.strerror or type(error).__name__})"] += 1
    except cv2.error:
        tally.problems["OpenCV failed on a frame"] += 1


def prepare(image: Image, settings: Settings, rotation: int = 0) -> UInt8[np.ndarray, "side side 3"]:
    """A frame as it is matched and stored: turned upright (`rotation`, degrees clockwise), without its margins, square.

    At least one row and one column stay, however wide the margins of a small frame.
    """
    image = np.rot90(image, -rotation // 90) if rotation else image
    height, width, _ = image.shape
    top, right, bottom, left = settings.margins
    first_row, first_column = min(round(top * height), height - 1), min(round(left * width), width - 1)
    last_row, last_column = height - round(bottom * height), width - round(right * width)
    image = image[first_row : max(last_row, first_row + 1), first_column : max(last_column, first_column + 1)]
    return matching.resize(np.ascontiguousarray(image), settings.image_size)


def match_frames(first: Frame, second: Frame, settings: Settings, tally: Tally) -> Comparison:
    """Puts two frames to the pair test, and counts it."""
    tally.pairs_tried += 1
    match = matching.match_features(
        first.features,
        second.features,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        matcher=settings.matcher,
    )
    reason = match if isinstance(match, Reason) else judge(match.overlap, settings)
    if reason is not None:
        tally.rejected[reason.value] += 1
    return Comparison(first, second, None if isinstance(match, Reason) else match, reason)


def judge(share: float, settings: Settings) -> Reason | None:
    """Why a pair of this overlap is not kept; None where it is inside the band."""
    if share < settings.min_overlap:
        return Reason.BELOW_BAND
    return Reason.ABOVE_BAND if share > settings.max_overlap else None


def _ready_pairs(scene: Scene, settings: Settings, tally: Tally) -> Iterator[records.Pair]:
    for ready in _until_unreadable(scene.samples(), tally):
        if ready.problem is not None and settings.policy == "covisible":
            tally.pairs_tried += 1
            tally.rejected[ready.problem] += 1
            continue
        if ready.problem is not None:
            tally.problems[ready.problem] += 1
            continue
        tally.frames_read += 2
        if settings.policy == "tested":
            pair = _tested(scene, ready, settings, tally)
        else:
            tally.pairs_tried += 1
            pair = _as_it_is(scene, ready, settings)
        if pair is not None:
            yield pair


def _as_it_is(scene: Scene, ready: ReadyPair, settings: Settings) -> records.Pair:
    """A ready pair with what is known of it: where there is no correspondence, overlap is NaN."""
    correspondence, share = ready.correspondence, float("nan")
    if correspondence is None:
        correspondence = np.full(settings.patches, overlap.NO_PATCH, np.int16)
    else:
        share = overlap.overlap(correspondence)
    match = Match(_NO_HOMOGRAPHY, -1, correspondence, share)
    return _pair(scene, settings, match, ready.view1, ready.view2, ready.frame1, ready.frame2)


def _tested(scene: Scene, ready: ReadyPair, settings: Settings, tally: Tally) -> records.Pair | None:
    """A ready pair put to the test like any other; its views stay as they are where they have the right size."""
    frames, jpegs = [], []
    for tick, (jpeg, number) in enumerate([(ready.view1, ready.frame1), (ready.view2, ready.frame2)]):
        image = records.decode_image(jpeg)
        view = prepare(image, settings)
        frames.append(_frame(view, settings, number, tick))
        jpegs.append(jpeg if np.array_equal(view, image) else records.encode_image(view, settings.quality))
    comparison = match_frames(*frames, settings=settings, tally=tally)
    if comparison.reason is not None:
        return None
    return _pair(scene, settings, comparison.match, *jpegs, ready.frame1, ready.frame2)


def _pair(scene: Scene, settings: Settings, match: Match, view1, view2, frame1: int, frame2: int) -> records.Pair:
    return records.Pair(
        view1=view1,
        view2=view2,
        correspondence=match.correspondence,
        homography=match.homography.astype("float32"),
        overlap=match.overlap,
        inliers=match.inliers,
        source=scene.source or settings.name,
        scene=scene.name,
        frame1=frame1,
        frame2=frame2,
    )


def mine_to_part(scene: Scene, output: Path, settings: Settings) -> tuple[str, dict[str, Any]]:
    """Mines one scene into its part of the dataset at `output`. Returns its name and its entry in the manifest."""
    workers.quiet_opencv()
    tally, entry = Tally(), {}

    def pairs() -> Iterator[records.Pair]:
        yield from mine_scene(scene, settings, tally)
        entry.update(_entry(scene, settings, tally))

    dataset.write_part(output, scene.name, pairs(), entry)
    return scene.name, entry


def crash_to_part(scene: Scene, output: Path, settings: Settings) -> tuple[str, dict[str, Any]]:
    """What is left of a scene that its process died of: an entry without pairs."""
    entry = _entry(scene, settings, Tally(problems=collections.Counter({CRASHED: 1})))
    dataset.write_part(output, scene.name, (), entry)
    return scene.name, entry


def mine_apart(scene: Scene, output: Path, settings: Settings) -> None:
    """`mine_to_part` in a process of its own, for engines whose workers must not die of a scene."""

    def done(scene: Scene, result: object) -> None:
        if isinstance(result, workers.Crashed):
            crash_to_part(scene, output, settings)

    workers.on_processes(functools.partial(mine_to_part, output=output, settings=settings), [scene], 1, done)


def _entry(scene: Scene, settings: Settings, tally: Tally) -> dict[str, Any]:
    """A scene's entry in the manifest."""
    entry: dict[str, Any] = {
        "input_size": scene.input_size,
        "source": scene.source or settings.name,
        "frames_read": tally.frames_read,
        "pairs_tried": tally.pairs_tried,
        "pairs_kept": tally.pairs_kept,
        "rejected": dict(sorted(tally.rejected.items())),
        "problems": dict(sorted(tally.problems.items())),
    }
    if scene.rotation:
        entry["rotation"] = scene.rotation
    if tally.yields:
        entry["yield"] = dict(tally.yields)
    return entry
