"""Which way up the frames of a scene are."""

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.settings import Settings
from data_prep.sources.scene import Sample, Scene, SceneProblem
from mimic_jax.command import InputError

NOT_IN_TABLE = "not in the table of rotations"


def read_table(path: Path) -> dict[str, int]:
    """Degrees clockwise that turn each scene's frames upright, from a table (CSV) with a first line of names.

    Either columns `scene` and `rotation`, in degrees, or `video_id` and `sky_direction` as in the metadata.csv of
    ARKitScenes, where the sky is Up, Left, Right or Down in the picture.

    Raises:
      InputError: the table cannot be read, or a line of it.
    """
    of_sky = {"up": 0, "left": 90, "down": 180, "right": 270}
    rotations = {}
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except FileNotFoundError as error:
        raise InputError(f"--rotation={path}: not tag, 0, 90, 180 or 270, and there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--rotation={path}: not 0, 90, 180, 270 or tag, and no table that can be read") from error
    for number, line in enumerate(lines, start=2):
        if line.get("scene") and (line.get("rotation") or "").strip() in ("0", "90", "180", "270"):
            rotations[line["scene"]] = int(line["rotation"])
        elif line.get("video_id") and (line.get("sky_direction") or "").strip().lower() in of_sky:
            rotations[line["video_id"]] = of_sky[line["sky_direction"].strip().lower()]
        elif not (line.get("video_id") and "sky_direction" in line):
            raise InputError(
                f"--rotation={path}: line {number}: columns scene and rotation (0, 90, 180, 270) are needed, "
                "or video_id and sky_direction"
            )
    return rotations


def turned(scene: Scene, settings: Settings, rotations: Mapping[str, int]) -> Scene:
    """The scene with the rotation that `settings.rotation` gives it; `rotations` is the table."""
    if settings.rotation == "tag":
        return scene
    if settings.rotation != "table":
        return dataclasses.replace(scene, rotation=int(settings.rotation))
    # Tables name ARKitScenes' videos by their number alone.
    rotation = rotations.get(scene.name, rotations.get(scene.name.rsplit("/", 1)[-1]))
    if rotation is None:
        return dataclasses.replace(scene, samples=_not_in_table)
    return dataclasses.replace(scene, rotation=rotation)


def _not_in_table() -> Iterator[Sample]:
    raise SceneProblem(NOT_IN_TABLE)
