"""The description of a trained backbone: kind, sizes, and image sizes of its training. Never imports jax.

`model.json` of a workdir, `weights.json` of a weights folder and the metadata of exported files hold one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mimic_jax.models.sizes import ROPE_BASES, Sizes

# The keys of models.kinds.MODELS, which imports jax.
KINDS = ("croco", "mae", "vit")


@dataclasses.dataclass(frozen=True)
class Seen:
    """The image sizes of a training run: (height, width) in pixels.

    size: what images are resized to.
    crop: the part of a resized image that the model gets.
    """

    size: tuple[int, int]
    crop: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Description:
    """kind: a key of models.kinds.MODELS. seen: None where it is not known."""

    kind: str
    sizes: Sizes
    seen: Seen | None = None


def to_json(kind: str, sizes: Sizes, seen: Seen | None) -> dict[str, Any]:
    """The fields of a description, for `from_json`."""
    described = {"kind": kind, "sizes": dataclasses.asdict(sizes)}
    return described | ({"seen": dataclasses.asdict(seen)} if seen else {})


def from_json(described: Mapping[str, Any]) -> Description:
    """The description that `to_json` wrote; other entries are ignored.

    Raises:
      ValueError, TypeError, KeyError: an entry is missing, or its value cannot be used.
    """
    if described["kind"] not in KINDS:
        raise ValueError(f"kind {described['kind']!r} is not one of {', '.join(KINDS)}")
    return Description(described["kind"], Sizes(**described["sizes"]), seen_from_json(described))


def seen_from_json(described: Mapping[str, Any]) -> Seen | None:
    """The image sizes in a description; None where it has none.

    Weights that were written before descriptions had `seen` have it in their training's config, if anywhere.

    Raises:
      ValueError, TypeError, KeyError: `seen` cannot be used.
    """
    if "seen" in described:
        return Seen(*(_both(described["seen"][name]) for name in ("size", "crop")))
    try:
        return _seen_from_config(described["about"]["config"])
    except (KeyError, TypeError, ValueError):
        return None


def from_config(config: Mapping[str, Any]) -> Description:
    """The description of a workdir that was made before workdirs had a `model.json`.

    Absolute position embeddings belong to the grid of the crop, where the config names no other.

    Args:
      config: the resolved config; `model`, `data.size` and `data.crop` are read.

    Raises:
      ValueError, TypeError, KeyError: a field is missing, or its value cannot be used.
    """
    fields, seen = dict(config["model"]), _seen_from_config(config)
    kind = fields.pop("kind")
    patch = fields.get("patch_size", Sizes.patch_size)
    absolute = ROPE_BASES.get(fields.get("positions", Sizes.positions), 0) is None
    if absolute and fields.get("position_grid") is None:
        fields["position_grid"] = (seen.crop[0] // patch, seen.crop[1] // patch)
    described = from_json({"kind": kind, "sizes": fields})
    return dataclasses.replace(described, seen=seen)


def _seen_from_config(config: Mapping[str, Any]) -> Seen:
    return Seen(*(_both(config["data"][name]) for name in ("size", "crop")))


def _both(value: Any) -> tuple[int, int]:
    """(height, width) from a side or from both sides, as configs give sizes."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(side, int) and side > 0 for side in both):
        raise ValueError(f"{value!r} is not a side in pixels, or (height, width)")
    return both
