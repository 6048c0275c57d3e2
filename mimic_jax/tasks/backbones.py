"""The model section of a config: sizes of the backbone.

A size that the config leaves open comes from the weights that a run starts from.
"""

import dataclasses
from typing import Any

from mimic_jax import sections
from mimic_jax.command import InputError
from mimic_jax.models.description import Description, Seen
from mimic_jax.models.sizes import ROPE_BASES, Sizes
from mimic_jax.sections import Side, setting


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A vision transformer. A field that is None has the value of the weights that the run starts from."""

    encoder_width: int | None = setting("Width of the encoder.", low=1)
    encoder_depth: int | None = setting("Blocks of the encoder.", low=1)
    encoder_heads: int | None = setting("Attention heads of an encoder block.", low=1)
    patch_size: int | None = setting("Side of a square patch, in pixels.", low=1)
    positions: str | None = setting(
        "Position embeddings: fixed sine-cosine rows, a learned table, or rotary attention.", choices=tuple(ROPE_BASES)
    )
    class_token: bool | None = setting("Whether a learned token comes before the patches.")
    position_grid: tuple[int, int] | None = setting(
        "Rows and columns of the grid of absolute position embeddings. None: the weights', or that of `data.crop`.",
        low=1,
    )


@dataclasses.dataclass(frozen=True)
class Completer(Encoder):
    """A model that completes masked views."""

    kind: str = setting("Whether a second view is looked at (CroCo) or not (MAE).", choices=("croco", "mae"))
    decoder_width: int | None = setting("Width of the decoder.", low=1)
    decoder_depth: int | None = setting("Blocks of the decoder.", low=1)
    decoder_heads: int | None = setting("Attention heads of a decoder block.", low=1)
    mask_ratio: float | None = setting("Fraction of the first view's patches that is hidden.", above=0, below=1)
    norm_pix_loss: bool | None = setting("Whether target patches are normalised by their own mean and variance.")


def read_model(section: type[Encoder], values: Any, known: Sizes | None, data: sections.Section) -> Description:
    """The backbone that a config describes.

    Args:
      section: Encoder or Completer.
      values: the config's model section; its fields may be left out.
      known: sizes of the weights that the run starts from, or of the run that it resumes.
      data: the config's data section, with `sides` and `window`.

    Raises:
      InputError: a field is unknown, cannot be used, or is given neither by the config nor by weights.
    """
    names = [field.name for field in dataclasses.fields(section)]
    given = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(given, dict):
        raise InputError(f"config.model={given!r} must be a section with the fields {', '.join(names)}")
    given = dict(given)
    # A resolved config has every field of Sizes.
    others = {name: given.pop(name) for name in list(given) if name in _SIZES and name not in names}
    found = sections.read(section, dict.fromkeys(names) | given, "config.model")
    fields = {name: getattr(found, name) for name in names if name != "kind"}
    for name, value in fields.items():
        if value is None and known is not None:
            # Weights of an encoder have a decoder of size 0.
            fields[name] = getattr(known, name) or (None if name in _REQUIRED else getattr(known, name))
    missing = [name for name in fields if fields[name] is None and name in _REQUIRED]
    if missing:
        given_by = " or start from weights with --config.init=WEIGHTS"
        raise InputError(f"config.model.{missing[0]} is not set: give --config.model.{missing[0]}=…,{given_by}")
    fields = {name: value for name, value in fields.items() if value is not None}
    patch = fields.get("patch_size", Sizes.patch_size)
    check_sides(data.sides, data.window, patch)
    absolute = ROPE_BASES[fields.get("positions", Sizes.positions)] is None
    if absolute and fields.get("position_grid") is None:
        fields["position_grid"] = (data.window[0] // patch, data.window[1] // patch)
    try:
        sizes = Sizes(**fields)
    except ValueError as error:
        raise InputError(f"config.model: {error}") from error
    for name, value in others.items():
        if value != getattr(sizes, name):
            raise InputError(f"config.model.{name}={value!r} must be {getattr(sizes, name)!r} for this task")
    return Description(getattr(found, "kind", "vit"), sizes, Seen(data.sides, data.window))


def check_sides(size: Side, crop: Side, patch: int) -> None:
    """Checks that a crop fits into images and divides into patches.

    Raises:
      InputError: it does not.
    """
    if any(inner % patch or inner > outer for inner, outer in zip(crop, size, strict=True)):
        shown = [side[0] if side[0] == side[1] else side for side in (crop, size)]
        raise InputError(
            f"config.data.crop={shown[0]} must be a multiple of config.model.patch_size={patch} and at most "
            f"config.data.size={shown[1]}"
        )


_SIZES = {field.name for field in dataclasses.fields(Sizes)}
_REQUIRED = {"encoder_width", "encoder_depth", "encoder_heads", "decoder_width", "decoder_depth", "decoder_heads"}
