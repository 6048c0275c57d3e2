"""The labelled records of one scene."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from data_prep import dataset, workers
from data_prep.building import CRASHED
from data_prep.labels import Scene, Settings
from data_prep.sources.scene import SceneProblem
from mimic_jax import records


def label_to_part(scene: Scene, output: Path, settings: Settings, schema: records.Schema) -> tuple[str, dict[str, Any]]:
    """Reads one scene into its part of the dataset at `output`. Returns its name and its entry in the manifest."""
    workers.quiet_opencv()
    entry: dict[str, Any] = {}
    dataset.write_part(output, scene.name, _kept(scene, settings, entry), entry, schema.encode)
    return scene.name, entry


def crash_to_part(scene: Scene, output: Path, settings: Settings, schema: records.Schema) -> tuple[str, dict[str, Any]]:
    """What is left of a scene that its process died of: an entry without records."""
    entry = _entry(scene, settings, 0, 0, 0, {}, {CRASHED: 1})
    dataset.write_part(output, scene.name, (), entry, schema.encode)
    return scene.name, entry


def _kept(scene: Scene, settings: Settings, entry: dict[str, Any]) -> Iterator[Any]:
    """The scene's records; fills `entry` at the end. Never raises for what cannot be read."""
    frames: set[int] = set()
    tried = kept = 0
    rejected: collections.Counter = collections.Counter()
    problems: collections.Counter = collections.Counter()
    try:
        for example in scene.examples():
            frames.update(example.frames)
            tried += 1
            if example.record is None:
                rejected[example.reason] += 1
                continue
            kept += 1
            yield example.record
    except SceneProblem as problem:
        problems[str(problem)] += 1
    except OSError as error:
        problems[f"cannot be read ({error.strerror or type(error).__name__})"] += 1
    except cv2.error:
        problems["OpenCV failed on a frame"] += 1
    if not tried and not problems:
        problems["too few frames"] += 1
    entry.update(_entry(scene, settings, len(frames), tried, kept, rejected, problems))


def _entry(scene: Scene, settings: Settings, frames: int, tried: int, kept: int, rejected, problems) -> dict[str, Any]:
    """A scene's entry in the manifest."""
    names = records.count_names(settings.records)
    return {
        "input_size": scene.input_size,
        "source": settings.name,
        "frames_read": frames,
        names[0]: tried,
        names[1]: kept,
        "rejected": dict(sorted(rejected.items())),
        "problems": dict(sorted(problems.items())),
    }
