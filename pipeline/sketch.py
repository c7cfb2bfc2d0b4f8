"""Stage `sketch`: a network as it would be served, before anything is trained: for size and speed, or as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.durable import fresh_folder, hash_file, settle, write_json
from pipeline.export import GRAPH, WEIGHTS, export_graph
from pipeline.images import Size
from pipeline.model import Served, Values, create_network, load_weights, mean_and_std, state_of, weights_mb
from policies.job import Outputs, Report


def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    """The stage: writes the model folder of a network of `classes` classes that nobody trained here.

    Its weights are drawn from a fixed seed, or those of "weights", as of `model.weights`.
    """
    torch.set_num_threads(int(inputs["threads"]))
    torch.manual_seed(0)
    size = (int(inputs["height"]), int(inputs["width"]))
    net, mean, std = _network(inputs, size)
    model = Path(inputs["model"])
    folder = fresh_folder(model)
    opset = export_graph(Served(net, mean, std).eval(), size, folder / GRAPH)
    save_file(state_of(net), folder / WEIGHTS)
    files = {
        part: {"file": name, "sha256": hash_file(folder / name), "bytes": (folder / name).stat().st_size}
        for part, name in (("weights", WEIGHTS), ("graph", GRAPH))
    }
    about = {
        "format": 1,
        "id": f"sketch-{inputs['architecture']}",
        "architecture": inputs["architecture"],
        "classes": [str(number) for number in range(int(inputs["classes"]))],
        "input": {"height": size[0], "width": size[1], "channels": 3, "dtype": "uint8", "layout": "NHWC"},
        "resize": inputs.get("resize", "stretch"),
        "mean": mean,
        "std": std,
        "snapshot": "",
        "weights": files["weights"],
        "graph": {**files["graph"], "opset": opset},
    }
    write_json(folder / "manifest.json", about)
    settle(folder, model)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return {"model": about["id"], "path": str(model), "weights_mb": weights_mb(net), "parameters": parameters}


def _network(inputs: Mapping[str, Any], size: Size) -> tuple[nn.Module, Values, Values]:
    """With the mean and standard deviation of what it expects."""
    weights = inputs.get("weights", "none")
    pretrained = weights == "timm"
    net = create_network(inputs["architecture"], int(inputs["classes"]), size, pretrained=pretrained)
    if weights not in ("none", "timm"):
        load_weights(net, Path(weights))
    return net, *mean_and_std(net, weights)
