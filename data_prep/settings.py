"""What decides which pairs a scene gives, and the published combinations."""

import dataclasses
import json
import math
from typing import Any

from data_prep import matching
from mimic_jax import records
from mimic_jax.command import InputError

_MOVING = ("adaptive", "step", "double_step", "disjoint", "blocks", "exhaustive", "best")
# The policies that suit each source; the first one is taken where none is named.
POLICIES_OF = {
    "video": _MOVING,
    "frames": _MOVING,
    "photos": ("exhaustive", "best"),
    "scene3d": ("panoramas", "covisible"),
    "mimic_release": ("ready", "tested"),
    "croco_listing": ("ready", "tested"),
}

# Between the frames looked at, where no step is named: a second of a video; of a folder of images a third of one at 30
# frames a second, and every image where all are compared with all.
_FRAMES_STEP = {"exhaustive": 1, "best": 1, "blocks": 1}

# What is of use to some sources alone; elsewhere it would be passed over in silence.
_IMAGES, _3D = ("video", "frames", "photos"), ("scene3d",)
_ONLY_FOR = {
    "step": _IMAGES,
    "margins": _IMAGES,
    "rotation": _IMAGES,
    "min_length": _IMAGES,
    "folder": ("frames", "photos"),
    "samples": _3D,
    "up": _3D,
    "seed": _3D,
    "renderer": _3D,
}
# Policies that take pairs as they are, and what is then of no use.
UNTESTED = ("ready", "covisible")
_ONLY_TESTED = ("min_overlap", "max_overlap", "matcher")

# What a preset leaves out is published: MIMIC's matcher, on views of the size that its configs read.
_MIMIC: dict[str, Any] = {"matcher": "published", "image_size": 224}
# Views are stored at the size that the configs of a recipe read (`config.data.size`), so that none is enlarged.
# docs/presets.md shows the folders that each preset expects, and which configs read it.
PRESETS: dict[str, dict[str, Any]] = {
    # The combinations of MIMIC (arXiv 2306.15128), one a dataset.
    "mannequin": {
        **_MIMIC,
        "source": "video",
        "policy": "step",
        "step": 1.0,
        "margins": (0.0, 0.0, 0.2, 0.0),
        "min_length": 3.0,
    },
    "arkitscenes": {**_MIMIC, "source": "video", "policy": "double_step", "step": 1.0, "min_length": 5.0},
    "objectron": {**_MIMIC, "source": "video", "policy": "step", "step": 1.0},
    "co3d": {**_MIMIC, "source": "frames", "policy": "disjoint", "step": 5.0, "folder": "images"},
    "scannet": {**_MIMIC, "source": "frames", "policy": "blocks", "step": 1.0, "folder": "color"},
    "demon": {**_MIMIC, "source": "photos", "policy": "best", "step": 1.0},
    "street_view_3d": {**_MIMIC, "source": "photos", "policy": "exhaustive", "step": 1.0},
    "hm3d": {**_MIMIC, "source": "scene3d", "policy": "panoramas", "samples": 3000, "up": "z"},
    "gibson": {**_MIMIC, "source": "scene3d", "policy": "panoramas", "samples": 3000, "up": "z"},
    "matterport": {**_MIMIC, "source": "scene3d", "policy": "panoramas", "samples": 500, "up": "z"},
    # CroCo's recipe for its synthetic pairs (arXiv 2210.10716); 256 pixels, cropped to 224 in training.
    "croco_scenes": {"source": "scene3d", "policy": "covisible", "samples": 1000, "up": "z", "image_size": 256},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides which pairs a scene gives.

    name: the source dataset that records say they are from; released pairs name their own.
    source: what the input is. policy: which frames of a scene are compared and which pairs kept.
    step: between the frames looked at; seconds for videos, frames for folders of images.
    min_overlap, max_overlap: the band, fractions of a view's patches; both ends are inside.
    matcher: how two views are matched, a key of `matching.MATCHERS`.
    image_size, patch_size: pixels a side of the stored views, and of the patches that overlap counts.
    quality: of the stored JPEGs, 1 to 100.
    margins: cut away from each upright frame at the top, right, bottom and left; fractions of its height or width.
    rotation: "tag" turns frames upright by the file's own tag; "0", "90", "180" or "270" turns them so many degrees
      clockwise whatever the tag says; "table" means that each scene has its own turn.
    min_length: shorter scenes are left out; seconds for videos, images for folders.
    folder: of folders of images, only those of this name are read; "" for all. "images" in CO3D, "color" in ScanNet.
    samples: places tried in each 3-D scene. up: the axis that points up there, "y" or "z".
    seed: of the random draws in 3-D scenes.
    renderer: what films 3-D scenes: "rays", the ray caster here, or "habitat", habitat-sim where it is installed.
    """

    name: str
    source: str = "video"
    policy: str = "adaptive"
    step: float | int = 1.0
    min_overlap: float | int = 0.5
    max_overlap: float | int = 0.75
    matcher: str = "robust"
    image_size: int = 224
    patch_size: int = 16
    quality: int = 95
    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    rotation: str = "tag"
    min_length: float | int = 0.0
    folder: str = ""
    samples: int = 1000
    up: str = "y"
    seed: int = 0
    renderer: str = "rays"

    def __post_init__(self):
        known = {
            "source": tuple(POLICIES_OF),
            "policy": POLICIES_OF.get(self.source, ()),
            "matcher": tuple(matching.MATCHERS),
            "rotation": ("tag", "0", "90", "180", "270", "table"),
            "up": ("y", "z"),
            "renderer": ("rays", "habitat"),
        }
        for key, values in known.items():
            if getattr(self, key) not in values:
                of = f" for --source={self.source}" if key == "policy" else ""
                raise InputError(f"--{key}={getattr(self, key)}: not one of {', '.join(values)}{of}")
        if not 0 < self.step < math.inf:
            raise InputError(f"--step={self.step:g}: must be above 0")
        if self.source in ("frames", "photos") and self.step != int(self.step):
            raise InputError(f"--step={self.step:g}: for folders of images, a whole number of frames, 1 or more")
        if self.source == "photos" and self.step != 1:
            raise InputError(f"--step={self.step:g}: photos have no order to step through; leave it out")
        if not 0 <= self.min_overlap <= self.max_overlap <= 1:
            raise InputError(
                f"--min_overlap={self.min_overlap:g} --max_overlap={self.max_overlap:g}: "
                "must satisfy 0 ≤ min_overlap ≤ max_overlap ≤ 1"
            )
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise InputError(f"--image_size={self.image_size}: must be a multiple of --patch_size={self.patch_size}")
        if self.image_size > 4096:
            raise InputError(f"--image_size={self.image_size}: must be at most 4096")
        # The correspondence is int16, and its working memory grows with the square of the patches.
        if self.image_size > 64 * self.patch_size:
            raise InputError(
                f"--image_size={self.image_size} --patch_size={self.patch_size}: at most 64 × 64 patches; "
                "give a larger --patch_size or a smaller --image_size"
            )
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality={self.quality}: must be 1 to 100")
        top, right, bottom, left = self.margins
        if not (all(0 <= margin < 1 for margin in self.margins) and top + bottom < 1 and left + right < 1):
            given = ",".join(f"{margin:g}" for margin in self.margins)
            raise InputError(f"--margins={given}: fractions of the frame at top,right,bottom,left; some must remain")
        if not 0 <= self.min_length < math.inf:
            raise InputError(f"--min_length={self.min_length:g}: must be 0 or more")
        if self.samples < 1:
            raise InputError(f"--samples={self.samples}: must be 1 or more")
        if self.seed < 0:
            raise InputError(f"--seed={self.seed}: must be 0 or more")

    def values(self) -> dict[str, Any]:
        """As JSON would give them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def patches(self) -> int:
        """Patches of a view."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def schema(self) -> records.Schema:
        """The schema of the pairs that are mined."""
        return records.pairs.schema(self.patches)

    @property
    def ticks(self) -> int:
        """Samples in one step: several under the adaptive policy, which looks between the steps."""
        if self.policy != "adaptive":
            return 1
        return int(self.step) if self.source == "frames" else 10


def choose(name: str, preset: str | None = None, **given: Any) -> Settings:
    """Settings from a preset and what was given besides, which stands over it; None is not given.

    What neither says is chosen by the source: its first policy, and a step that suits both.

    Raises:
      InputError: no such preset, or a value that cannot be.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset={preset}: not one of {', '.join(PRESETS)}")
    given = {key: value for key, value in given.items() if value is not None}
    values = (PRESETS[preset] if preset else {}) | given
    source = values.setdefault("source", "video")
    policy = values.setdefault("policy", POLICIES_OF.get(source, ("",))[0])
    for key in given:
        if source not in _ONLY_FOR.get(key, (source,)):
            raise InputError(f"--{key}: only for --source={' or '.join(_ONLY_FOR[key])}, not {source}; leave it out")
        if key in _ONLY_TESTED and policy in UNTESTED:
            raise InputError(f"--{key}: --policy={policy} takes pairs as they are, untested; leave it out")
    if "step" not in values:
        values["step"] = {"frames": _FRAMES_STEP.get(policy, 10)}.get(source, 1)
    return Settings(name, **values)
