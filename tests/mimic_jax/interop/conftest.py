"""What tests of foreign files share."""

import pytest


@pytest.fixture
def save(tmp_path):
    """Writes a state dict under "model", or as safetensors, and gives its path; needs PyTorch."""
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")

    def write(state, kind="pth", **others):
        path = tmp_path / f"weights.{kind}"
        if kind == "pth":
            torch.save({"model": state, **others}, path)
        else:
            safetensors_torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, **others)
        return path

    return write
