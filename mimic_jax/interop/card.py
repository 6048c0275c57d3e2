"""Model cards: what an export is, where it comes from, what it lacks, and how each framework loads it (Markdown)."""

import dataclasses
import json
from typing import Any

import jax

from mimic_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mimic_jax.interop.weights import Weights
from mimic_jax.models.sizes import Sizes

_ENCODER_ALONE = ("timm_vit", "multimae")
_DECODER = "the decoder, the mask token and the prediction head, if there were any"
_LACKS = {
    "timm_vit": [_DECODER],
    "multimae": [
        "the final norm of the encoder: MultiMAE's heads have norms of their own",
        _DECODER,
        "the sizes above: they have to be told to MultiMAE's code",
    ],
}


def describe(whole: Weights) -> str:
    """A model in a few words."""
    sizes = whole.sizes
    name = {"croco": "a CroCo", "mae": "an MAE", "vit": "a ViT encoder"}[whole.kind]
    token = "with class token" if sizes.class_token else "without class token"
    positions = {"cosine": "cosine", "learned": "learned", "rope100": "rotary (RoPE100)"}[sizes.positions]
    grid = f" on a grid of {sizes.position_grid[0]}×{sizes.position_grid[1]}" if sizes.position_grid else ""
    head = "" if sizes.predicts or whole.kind == "vit" else ", without mask token and prediction head"
    return f"{name} {token}, of {positions} positions{grid}{head}"


def draw(whole: Weights, name: str, format: str, parameters: int) -> str:
    """The card of an export.

    Args:
      whole: what was exported, with the position grid that the export has.
      name: the name of the file or folder.
      format: one of exporting.FORMATS.
      parameters: how many the export has.
    """
    what = f"{'the encoder of ' if format in _ENCODER_ALONE else ''}{describe(whole)}"
    return (
        "\n\n".join(
            [
                f"# {name}",
                f"{what[0].upper()}{what[1:]}, as `{format}`: {parameters:,} parameters, "
                f"{_types(whole, format)}. "
                "Written by `python -m launch.export` of mimic_jax.",
                _sizes(whole, format),
                "## Where it comes from",
                *_about(whole.about),
                "## Input",
                f"RGB in [0, 1], then per channel (x − mean) / deviation with mean {IMAGENET_MEAN} and deviation "
                f"{IMAGENET_STD}, those of ImageNet: mimic_jax trains so and feeds every model so. Weights made "
                "elsewhere may have been trained on other input; their makers say.",
                "## What is not in it",
                _lacks(whole.sizes, format),
                "## Loading it",
                "Run these in the folder that holds it.",
                *_loading(whole, name, format),
                "## Licence",
                "None is recorded with these weights. Of their training data only that is known which is said above.",
            ]
        )
        + "\n"
    )


def _types(whole: Weights, format: str) -> str:
    """The types of the numbers in an export: files of tensors are float32, a folder keeps the weights' own."""
    if format != "orbax":
        return "float32"
    return ", ".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(whole.params)}))


def _sizes(whole: Weights, format: str) -> str:
    sizes = whole.sizes
    fields = dataclasses.asdict(sizes)
    if format in _ENCODER_ALONE or not sizes.decoder_depth:
        kept = ("encoder_width", "encoder_depth", "encoder_heads", "patch_size", "positions", "class_token")
        fields = {name: fields[name] for name in (*kept, "position_grid")}
    if sizes.position_grid:
        fields["position_grid"] = _by(sizes.position_grid)
    if whole.seen:
        fields["images in training"] = f"{_by(whole.seen.crop)}, cut from {_by(whole.seen.size)}"
    rows = [f"| {name} | {value} |" for name, value in fields.items() if value is not None]
    return "\n".join(["| size | |", "| --- | --- |", *rows])


def _about(about: dict[str, Any]) -> list[str]:
    if not about:
        return ["Nothing is recorded."]
    blocks = []
    for name, value in about.items():
        if isinstance(value, dict | list):
            blocks += [f"{name}:", f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"]
        else:
            blocks.append(f"{name}: {value}")
    return blocks


def _lacks(sizes: Sizes, format: str) -> str:
    lacks = ["the optimizer's state and the position in the data", *_LACKS.get(format, [])]
    if not sizes.predicts and format not in _ENCODER_ALONE:
        lacks.append(
            "a mask token, a prediction head, or any other head: it encodes and decodes, as DUSt3R's code needs"
        )
    if format == "croco_pth" and sizes.position_grid is None:
        lacks.append("`img_size` among croco_kwargs, as rotary positions hold for any: CroCoNet takes its default")
    if format == "safetensors" and sizes.positions == "cosine" and sizes.position_grid is None:
        lacks.append("tables of positions, as it is not known for which image size (`--image_size` gives it)")
    return "\n".join(f"- {each}" for each in lacks)


def _loading(whole: Weights, name: str, format: str) -> list[str]:
    if format == "orbax":
        return [*_mimic_jax(whole, name), *_orbax(name)]
    if format == "multimae":
        return [
            "MultiMAE and MIMIC's fine-tuning recipes take it as their pre-trained checkpoint: names under `model`, "
            "with one global token and the input adapter `rgb`. Their code is no part of mimic_jax, so this is not "
            "tested. mimic_jax does not read it back.",
            *_tensors(name),
        ]
    if format == "timm_vit":
        return [*_timm(whole, name), *_mimic_jax(whole, name)]
    if format == "croco_pth":
        return [*_croco(whole.sizes, name), *_mimic_jax(whole, name), *_tensors(name)]
    if format == "safetensors":
        return [*_mimic_jax(whole, name), *_tensors(name)]
    published = {"mimic_pth": "MIMIC's", "mae_pth": "MAE's"}[format]
    return [
        f"{published} code takes the names under `model`. It is no part of mimic_jax, so that is not tested.",
        *_mimic_jax(whole, name),
        *_tensors(name),
    ]


def _mimic_jax(whole: Weights, name: str) -> list[str]:
    height, width = _image(whole)
    code = [
        "import numpy as np",
        "",
        "from mimic_jax import backbone",
        "",
        f"model = backbone.load({_string(name)})",
        f"features = model.encode(np.zeros((1, {height}, {width}, 3), np.uint8))  # [batch, rows, columns, width]",
    ]
    return ["In mimic_jax:", _python(code)]


def _orbax(name: str) -> list[str]:
    code = [
        "from pathlib import Path",
        "",
        "import orbax.checkpoint as ocp",
        "",
        f'params = ocp.StandardCheckpointer().restore(Path({_string(name)}, "params").absolute())',
    ]
    return ["In JAX, the arrays alone, with Orbax:", _python(code)]


def _croco(sizes: Sizes, name: str) -> list[str]:
    code = [
        "import torch",
        "from models.croco import CroCoNet",
        "",
        f'checkpoint = torch.load({_string(name)}, map_location="cpu", weights_only=True)',
        'model = CroCoNet(**checkpoint["croco_kwargs"])',
        f'model.load_state_dict(checkpoint["model"]{"" if sizes.predicts else ", strict=False"})',
    ]
    return [
        "In PyTorch, in a checkout of naver/croco; DUSt3R's code takes the same names. This one is not tested, as that "
        "code is no part of mimic_jax:",
        _python(code),
    ]


def _timm(whole: Weights, name: str) -> list[str]:
    sizes = whole.sizes
    pooling = [] if sizes.class_token else ["    class_token=False,", '    global_pool="avg",', "    fc_norm=False,"]
    safe = name.endswith(".safetensors")
    code = [
        *([] if safe else ["import torch"]),
        *(["from safetensors.torch import load_file"] if safe else []),
        "from timm.models.vision_transformer import VisionTransformer",
        "",
        "model = VisionTransformer(",
        f"    img_size={_image(whole)},",
        f"    patch_size={sizes.patch_size},",
        f"    embed_dim={sizes.encoder_width},",
        f"    depth={sizes.encoder_depth},",
        f"    num_heads={sizes.encoder_heads},",
        *pooling,
        "    num_classes=0,",
        ")",
        f"model.load_state_dict({_load(name)}, strict=True)",
    ]
    return ["In timm, whose `forward_features` then gives what the encoder here gives:", _python(code)]


def _tensors(name: str) -> list[str]:
    code = [
        "from safetensors.torch import load_file" if name.endswith(".safetensors") else "import torch",
        "",
        f"tensors = {_load(name)}",
        "print({name: tuple(tensor.shape) for name, tensor in tensors.items()})",
    ]
    return ["In plain PyTorch, the tensors alone:", _python(code)]


def _load(name: str) -> str:
    if name.endswith(".safetensors"):
        return f"load_file({_string(name)})"
    return f'torch.load({_string(name)}, map_location="cpu", weights_only=True)["model"]'


def _image(whole: Weights) -> tuple[int, int]:
    """Height and width of an image on the position grid; without a grid, of the training; else of 14×14 patches."""
    if whole.sizes.position_grid is None and whole.seen:
        return whole.seen.crop
    rows, columns = whole.sizes.position_grid or (14, 14)
    return rows * whole.sizes.patch_size, columns * whole.sizes.patch_size


def _by(sides: tuple[int, int]) -> str:
    return "×".join(map(str, sides))


def _python(code: list[str]) -> str:
    return "\n".join(["```python", *code, "```"])


def _string(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)  # Python reads JSON's strings alike
