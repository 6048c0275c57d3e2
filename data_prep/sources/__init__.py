"""Where frames come from. A source is a module with a function `scenes(input, settings)`; a scene yields its frames, or
its ready pairs, when asked."""

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.settings import Settings
    from data_prep.sources.scene import Scene

MODULES = {
    "video": "video",
    "frames": "frames",
    "photos": "frames",
    "scene3d": "scene3d",
    "mimic_release": "mimic_release",
    "croco_listing": "croco_listing",
}


def scenes(input: Path, settings: "Settings") -> list["Scene"]:
    """The scenes of an input, by `settings.source`, in natural order of their names.

    Raises:
      InputError: there is nothing of that kind to read.
    """
    # Only the one asked for: 3-D scenes bring a ray caster with them.
    module = importlib.import_module(f"data_prep.sources.{MODULES[settings.source]}")
    return [
        dataclasses.replace(scene, name=label(scene.name), source=scene.source and label(scene.source))
        for scene in module.scenes(input, settings)
    ]


def label(name: str) -> str:
    """A name that a record can hold: bytes of a file name that are no UTF-8 are spelt out."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
