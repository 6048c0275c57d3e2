"""timm, where the torchvision that it imports does not go with PyTorch."""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@functools.cache
def import_timm() -> ModuleType:
    """timm; skips where it is absent.

    A torchvision that was built for CUDA does not go with a PyTorch for CPUs: none of its operators load, and for want
    of two of them timm cannot be imported, though ViTs use neither. So those two are declared; calling them would fail.
    """
    torch = pytest.importorskip("torch")
    torchvision = importlib.util.find_spec("torchvision")
    if importlib.util.find_spec("timm") is None or torchvision is None:
        pytest.skip("timm or torchvision is absent")
    try:
        for library in Path(torchvision.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("timm")
