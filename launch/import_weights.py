"""Reads weights of published systems into a weights folder of our own.

    python -m launch.import_weights --input=FILE --output=DIR

FILE is a .pth or .safetensors of naver/croco, DUSt3R, MIMIC, MAE, a timm ViT encoder, or of launch.export. Nothing in
it is executed. What was found, left over and assumed is printed.
"""

import sys
from pathlib import Path

from absl import flags

from mimic_jax import command

INPUT = flags.DEFINE_string("input", None, "The .pth or .safetensors file.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write; a new one.")
FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", "croco", "dust3r", "mimic", "mae", "timm"], "Whose names its tensors have."
)
POSITIONS = flags.DEFINE_enum(
    "positions", None, ["cosine", "rope100", "learned"], "Its positions, where the file does not tell."
)
ENCODER_HEADS = flags.DEFINE_integer("encoder_heads", None, "Heads of its encoder, where the file does not tell.", 1)
DECODER_HEADS = flags.DEFINE_integer("decoder_heads", None, "Heads of its decoder, where the file does not tell.", 1)
flags.mark_flags_as_required(["input", "output"])


def main() -> None:
    # Imported here, so that --help and a misspelt flag answer at once.
    from mimic_jax.interop.importing import import_file
    from mimic_jax.interop.weights import save_folder

    weights, report = import_file(
        Path(INPUT.value),
        FORMAT.value,
        positions=POSITIONS.value,
        encoder_heads=ENCODER_HEADS.value,
        decoder_heads=DECODER_HEADS.value,
    )
    save_folder(weights, Path(OUTPUT.value))
    show(report, weights.about, OUTPUT.value)


def show(report, about: dict, output: str) -> None:
    """Prints what was found."""
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    # Into a file or a pipe whole lines, so that they can be searched.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table("tensors read", "shape", "layers", "parameters")
    table.columns[0].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    for index, group in enumerate(report.read):
        last = index + 1 == len(report.read) or report.read[index + 1].name.split(".")[0] != group.name.split(".")[0]
        layers = f"×{group.count}" if group.count > 1 else ""
        table.add_row(group.name, str(list(group.shape)), layers, f"{group.parameters:,}", end_section=last)
    table.add_row("total", "", "", f"{report.parameters:,}", style="bold")
    console.print(table)
    fields = dataclasses.asdict(report.sizes)
    if not report.sizes.decoder_depth:  # an encoder predicts nothing
        told = ("encoder_width", "encoder_depth", "encoder_heads", "patch_size", "positions", "class_token")
        fields = {name: fields[name] for name in (*told, "position_grid")}
    sizes = ", ".join(f"{name} {value}" for name, value in fields.items())
    lines = [
        f"file: {about['origin']}, sha256 {about['sha256']}",
        f"format: {report.format}",
        f"model: {report.kind}",
        f"sizes: {sizes}",
    ]
    lines += [f"missing: {each}" for each in report.missing]
    for reason, names in report.left_over.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"left over: {len(names)} ({', '.join(names[:3])}{more}): {reason}")
    lines += [f"assumed: {each}" for each in report.assumed]
    for line in [*lines, f"written: {output}"]:
        console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    command.run(main)
