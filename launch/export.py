"""Writes trained or imported weights as a file that other systems read, and a model card beside it.

    python -m launch.export --weights=PATH --format=FORMAT --output=FILE

croco_pth    naver/croco's .pth with croco_kwargs; DUSt3R's code takes the same names
mimic_pth    MIMIC's .pth: a CroCo with class token
mae_pth      MAE's .pth
timm_vit     the encoder, .pth or .safetensors, for timm's VisionTransformer
multimae     the encoder as .pth, as MIMIC's fine-tuning recipes take it
safetensors  the whole model under its published names, and its sizes
orbax        the whole model as a folder: parameters alone, without optimizer
"""

from pathlib import Path

from absl import flags

from mimic_jax import command

WEIGHTS = flags.DEFINE_string(
    "weights", None, "The folder that pretrain wrote; or a weights folder, or a file that import_weights reads."
)
flags.DEFINE_alias("workdir", "weights")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a workdir; the newest by default.")
FORMAT = flags.DEFINE_string("format", None, "croco_pth, mimic_pth, mae_pth, timm_vit, multimae, safetensors or orbax.")
OUTPUT = flags.DEFINE_string("output", None, "The file, or the folder for orbax. The card is OUTPUT.md.")
IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "Image size of the training, as 224 or as HEIGHTxWIDTH, where the weights do not know it."
)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace an earlier export.")
flags.mark_flags_as_required(["weights", "format", "output"])


def main() -> None:
    # Imported here, so that --help and a misspelt flag answer at once.
    from launch.views import parse_image_size
    from mimic_jax.interop.exporting import export
    from mimic_jax.interop.load import load

    image_size = parse_image_size(IMAGE_SIZE.value) if IMAGE_SIZE.value else None
    weights = load(WEIGHTS.value, STEP.value)
    written = export(weights, Path(OUTPUT.value), FORMAT.value, image_size=image_size, overwrite=OVERWRITE.value)
    for path in written:
        print(path)


if __name__ == "__main__":
    command.run(main)
