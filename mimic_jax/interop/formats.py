"""The published systems whose files are read, and how a file is recognised."""

import dataclasses
from collections.abc import Iterable, Mapping

from mimic_jax.command import InputError
from mimic_jax.interop import names
from mimic_jax.interop.names import Names


@dataclasses.dataclass(frozen=True)
class Format:
    """A published system's files.

    kind: which of models.kinds.MODELS its weights become.
    encoder, decoder: the stacks of blocks; None for a format without a decoder.
    needs: beginnings of names; a file of this format has a tensor for each.
    lacks: beginnings of names that tell this format from others by their absence.
    ignored: beginnings of names that are no part of the model → why.
    mask_ratio: the published one. predicts: whether there are a mask token and a prediction head.
    """

    kind: str
    names: Names
    encoder: str
    decoder: str | None
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mask_ratio: float = 0.9
    predicts: bool = True


_DUST3R = {
    "dec_blocks2.": "DUSt3R's decoder of the second view; CroCo has one decoder",
    "downstream_head": "heads for DUSt3R's own task",
}

FORMATS = {
    "croco": Format(
        "croco",
        names.CROCO,
        "enc_blocks",
        "dec_blocks",
        needs=("enc_blocks.", "dec_blocks.", "prediction_head."),
        ignored=_DUST3R,
    ),
    "dust3r": Format(
        "croco",
        names.CROCO,
        "enc_blocks",
        "dec_blocks",
        needs=("enc_blocks.", "dec_blocks."),
        lacks=("prediction_head.",),
        ignored=_DUST3R | {"mask_token": "a mask token is of no use without a prediction head"},
        predicts=False,
    ),
    "mimic": Format("croco", names.MIMIC, "blocks", "decoder_blocks_croco", ("blocks.", "decoder_blocks_croco.")),
    "mae": Format("mae", names.MAE, "blocks", "decoder_blocks", ("blocks.", "decoder_blocks."), mask_ratio=0.75),
    "timm": Format(
        "vit",
        names.TIMM,
        "blocks",
        None,
        needs=("patch_embed.", "blocks."),
        lacks=("decoder_blocks.", "decoder_blocks_croco."),
        ignored={"head.": "the classifier", "fc_norm.": "a norm of what the classifier gets"},
    ),
}


def detect(tensors: Iterable[str]) -> str:
    """Which of FORMATS the names are of.

    Raises:
      InputError: none, or more than one.
    """
    found = [
        name for name, form in FORMATS.items() if not _lacking(form, tensors) and not _has_any(form.lacks, tensors)
    ]
    if len(found) == 1:
        return found[0]
    known = "; ".join(f"{name}: {', '.join(f'{need}*' for need in form.needs)}" for name, form in FORMATS.items())
    what = f"could be any of {', '.join(found)}" if found else "is of none of the formats that are known"
    prefix = _common_prefix(tensors)
    if prefix and not found:
        what += f" (all begin with {prefix!r}: save them without it)"
    raise InputError(f"by the names of its tensors, it {what}; choose one with --format ({known})")


def _common_prefix(tensors: Iterable[str]) -> str:
    """What all names have before their first dot, if that is one thing."""
    firsts = {name.partition(".")[0] for name in tensors}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def check_format(name: str, tensors: Iterable[str]) -> None:
    """Raises InputError where there is no such format, or the tensors by which it is known are missing."""
    if name not in FORMATS:
        raise InputError(f"--format={name}: is none of {', '.join(FORMATS)}")
    if lacking := _lacking(FORMATS[name], tensors):
        raise InputError(
            f"--format={name}: there is no tensor {lacking[0]}*; leave the flag out, or choose another format"
        )


def _lacking(form: Format, tensors: Iterable[str]) -> list[str]:
    return [need for need in form.needs if not _has_any((need,), tensors)]


def _has_any(beginnings: tuple[str, ...], tensors: Iterable[str]) -> bool:
    return any(name.startswith(beginnings) for name in tensors)
