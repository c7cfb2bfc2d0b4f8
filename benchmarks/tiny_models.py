"""Models so small that serving them costs next to nothing, each with answers and labels of its own.

The mean of each channel, a layer of weights that follow from the model's number, softmax. No two answer the same to any
image, neighbours know different numbers of classes, and no label belongs to two of them: an answer tells who gave it.
"""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.asking import ROUNDING, Images, Known, ask_graph
from deploy import build

FEWEST, KINDS = 5, 8  # classes: 5 to 12


def draw_images(count: int, size: int, seed: int = 0) -> Images:
    """Images of one colour each, under a little noise: uint8 (count, size, size, 3)."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 1, 1, 3))
    images: Images = np.clip(colours + random.integers(-9, 10, (count, size, size, 3)), 0, 255).astype(np.uint8)
    return images


def name_classes(number: int) -> list[str]:
    return [f"model{number}-{index}" for index in range(FEWEST + number * 3 % KINDS)]


def make_artifact(models: Path, artifacts: Path, number: int, size: int) -> dict[str, Any]:
    """Builds model `number` with ONNX Runtime as the daemon would; returns what the stage `build` answers."""
    folder = models / f"{number:016x}"
    folder.mkdir(parents=True)
    write_graph(folder / "model.onnx", number, size)
    (folder / "weights.safetensors").write_bytes(b"weights of model %d" % number)
    manifest = {
        "format": 1,
        "id": folder.name,
        "architecture": "tiny",
        "classes": name_classes(number),
        "input": {"height": size, "width": size, "channels": 3, "dtype": "uint8", "layout": "NHWC"},
        "snapshot": "none",
        "weights": describe(folder / "weights.safetensors"),
        "graph": describe(folder / "model.onnx"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    inputs = {"model": str(folder), "artifacts": str(artifacts), "engine": "onnxruntime", "precision": "fp32"}
    return build.run(inputs, {}, _unheard)


def write_graph(file: Path, number: int, size: int) -> None:
    random = np.random.default_rng(number)
    classes = len(name_classes(number))
    weights: NDArray[np.float32] = random.normal(0, 2, (3, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["means", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        [
            numpy_helper.from_array(np.array(255, np.float32), "scale"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(random.normal(0, 1, classes).astype(np.float32) - weights.mean(axis=0), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, file)


def describe(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"file": file.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def ask_artifact(folder: Path, number: int, images: Images) -> Known:
    return ask_graph(folder / "model.onnx", images, name_classes(number))


def require_different(known: list[Known]) -> None:
    """Raises ValueError where two models could be taken for each other by their answer to some image."""
    for one, other in combinations(known, 2):
        if one.probabilities.shape != other.probabilities.shape:
            continue
        apart = np.abs(one.probabilities - other.probabilities).max(axis=1).min()
        if apart < 10 * ROUNDING:
            raise ValueError(f"{one.classes[0]} and {other.classes[0]} answer alike ({apart:.1g}): take other seeds")


def _unheard(done: float, total: float, unit: str, **figures: Any) -> None:
    """A report that nobody hears."""
