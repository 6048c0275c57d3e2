"""The published sizes, by name (CroCo, section 4; CroCo v2, section 4)."""

from mimic_jax.models.croco import CroCoSizes

ENCODERS = {
    "vit_b": {"encoder_width": 768, "encoder_depth": 12, "encoder_heads": 12, "patch_size": 16},
    "vit_l": {"encoder_width": 1024, "encoder_depth": 24, "encoder_heads": 16, "patch_size": 16},
    "vit_h14": {"encoder_width": 1280, "encoder_depth": 32, "encoder_heads": 16, "patch_size": 14},
}
DECODERS = {
    "small": {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
    "base": {"decoder_width": 768, "decoder_depth": 12, "decoder_heads": 12},
}


def croco(encoder: str, decoder: str, positions: str) -> CroCoSizes:
    """A published CroCo, such as croco("vit_l", "base", "rope100"), the large v2.

    Raises:
      KeyError: the encoder or decoder is not one of the names above.
    """
    return CroCoSizes(**ENCODERS[encoder], **DECODERS[decoder], positions=positions)
