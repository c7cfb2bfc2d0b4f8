"""torch2trt, a converter for TensorRT 10 or older: it takes the network itself and not its graph.

The one module outside `pipeline` that loads torch. Not yet run on a GPU.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch2trt as converter

from deploy import plan
from deploy.plan_builder import BEST_BATCH_SIZE, find_own_gpu, write_plan

load = plan.load
why_not_here = plan.explain_no_gpu


def version() -> str:
    return importlib.metadata.version("torch2trt")


def describe() -> Mapping[str, Any]:
    return {
        "graphs": {"fp32": "as exported", "fp16": "as exported"},
        "flavour": "tensorrt_plan",
    }


def find_device(options: Mapping[str, Any]) -> str:
    return find_own_gpu("torch2trt", options)


def build(model: Path, graph: Path, out: Path, precision: str, options: Mapping[str, Any]) -> None:
    """Makes the network of the folder's weights and converts it, through ONNX: no converter takes uint8."""
    import tensorrt
    import torch

    if int(tensorrt.__version__.partition(".")[0]) > 10:
        raise ValueError(
            f"torch2trt needs TensorRT 10 or older, here is {tensorrt.__version__}; use the engine tensorrt instead"
        )
    device = find_own_gpu("torch2trt", options)
    manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    size = [manifest["input"][side] for side in ("height", "width", "channels")]
    largest = int(options["max_batch_size"])
    best = min(BEST_BATCH_SIZE, largest)
    converted = converter.torch2trt(
        make_network(model, manifest).cuda(),
        [torch.zeros((best, *size), dtype=torch.uint8, device="cuda")],
        input_names=[plan.INPUT],
        output_names=[plan.OUTPUT],
        fp16_mode=precision == "fp16",
        use_onnx=True,
        min_shapes=[(1, *size)],
        opt_shapes=[(best, *size)],
        max_shapes=[(largest, *size)],
    )
    write_plan(tensorrt, bytes(converted.engine.serialize()), out, device, size, largest)


def make_network(model: Path, manifest: Mapping[str, Any]) -> Any:
    """The network as it is served (uint8 NHWC in, probabilities out), with the weights of the model folder."""
    import timm
    import torch
    from safetensors.torch import load_file

    about = timm.models.get_pretrained_cfg(manifest["architecture"])
    size = (manifest["input"]["height"], manifest["input"]["width"])
    fixed: dict[str, Any] = {"img_size": size} if about is not None and about.fixed_input_size else {}
    net = timm.create_model(manifest["architecture"], num_classes=len(manifest["classes"]), **fixed)
    net.load_state_dict(load_file(model / manifest["weights"]["file"]))

    class Served(torch.nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.register_buffer("mean", torch.tensor(manifest["mean"]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(manifest["std"]).view(1, 3, 1, 1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.float().permute(0, 3, 1, 2) / 255
            return torch.softmax(self.net((pixels - self.mean) / self.std), 1)

    return Served().eval()
