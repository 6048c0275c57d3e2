"""What a model is made of, and the published sizes by name. Never imports jax: configs use it.

Sources: ViT (arXiv 2010.11929, table 1), DeiT for ViT-S (2012.12877), CroCo v2 (2211.10408, section 4).
"""

import dataclasses
from typing import Any

# By the name that sizes and configs have for positions: the base of rotary angles, or none.
ROPE_BASES = {"cosine": None, "learned": None, "rope100": 100.0}
ENCODERS = {
    "vit_s": {"encoder_width": 384, "encoder_depth": 12, "encoder_heads": 6, "patch_size": 16},
    "vit_b": {"encoder_width": 768, "encoder_depth": 12, "encoder_heads": 12, "patch_size": 16},
    "vit_l": {"encoder_width": 1024, "encoder_depth": 24, "encoder_heads": 16, "patch_size": 16},
    "vit_h14": {"encoder_width": 1280, "encoder_depth": 32, "encoder_heads": 16, "patch_size": 14},
}
DECODERS = {
    "small": {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
    "base": {"decoder_width": 768, "decoder_depth": 12, "decoder_heads": 12},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Everything that a model's parameters and its masks depend on. The size of images does not: grids follow them.

    decoder_width, decoder_depth, decoder_heads: 0 for an encoder alone.
    positions: "cosine" (fixed rows added before encoder and decoder: CroCo v1, MAE, MIMIC), "rope100" (rotary
      attention: CroCo v2), or "learned" (a table before the encoder, as timm has it; fixed rows before a decoder).
    class_token: whether a learned token goes before the patches (MAE, MIMIC).
    position_grid: rows and columns of the grid that added positions were trained on; other grids are interpolated.
      None: patches are one unit apart on any grid.
    mask_ratio: the share of the first view's patches that is hidden.
    norm_pix_loss: whether target patches are normalised by their own mean and variance.
    predicts: whether there are a mask token and a prediction head. DUSt3R's weights have neither.
    """

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    decoder_width: int = 0
    decoder_depth: int = 0
    decoder_heads: int = 0
    patch_size: int = 16
    positions: str = "rope100"
    class_token: bool = False
    position_grid: tuple[int, int] | list[int] | None = None
    mask_ratio: float = 0.9
    norm_pix_loss: bool = True
    predicts: bool = True

    def __post_init__(self):
        if self.position_grid is not None:  # JSON has lists
            object.__setattr__(self, "position_grid", tuple(self.position_grid))
        for part in ("encoder", "decoder") if self.decoder_depth else ("encoder",):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            # A rotary head divides into (y, x) × (sine, cosine); sine-cosine rows divide likewise.
            if heads < 1 or width < 1 or width % (4 * heads):
                raise ValueError(f"{part}_width {width} is not a multiple of 4 · {part}_heads ({heads})")
        if self.encoder_depth < 1 or self.patch_size < 1:
            raise ValueError("encoder_depth and patch_size must be at least 1")
        if self.positions not in ROPE_BASES:
            raise ValueError(f"positions {self.positions!r} is none of {sorted(ROPE_BASES)}")
        if self.class_token and self.positions == "rope100":
            raise ValueError("class_token has no place in rotary attention; positions must be 'cosine' or 'learned'")
        if self.positions == "learned" and self.position_grid is None:
            raise ValueError("positions 'learned' need a position_grid")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio {self.mask_ratio} is not between 0 and 1")

    def visible(self, patches: int) -> int:
        """How many of `patches` stay visible: of 196 at 0.9, CroCo keeps 20 and MIMIC 19, by how they round."""
        if self.class_token:  # MAE and MIMIC
            return int(patches * (1 - self.mask_ratio))
        return patches - int(self.mask_ratio * patches)


def published(encoder: str, decoder: str | None = None, **others: Any) -> dict[str, Any]:
    """Published sizes as the fields of `Sizes`: published("vit_l", "base", positions="rope100") is the large CroCo v2.

    Raises:
      KeyError: the encoder is none of ENCODERS, or the decoder none of DECODERS.
    """
    return ENCODERS[encoder] | (DECODERS[decoder] if decoder else {}) | others
