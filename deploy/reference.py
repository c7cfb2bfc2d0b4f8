"""The reference network: always the same work, by which it shows how slow a moment is for all that computes.

A small convolutional network with weights from a fixed seed, run by ONNX Runtime whatever engine is measured. One of
its calls runs it so many times in a row as take about as long as one run of what is measured: what interrupts a long
run more often than a short one (the scheduler, above all) then meets both alike.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploy.engines.onnxruntime import INPUT, OUTPUT, open_graph

SIDE = 32  # pixels
WARM_UP_RUNS = 30


class Reference:
    """An engine's runner like any other; a call runs the network `length` times."""

    def __init__(self, threads: int, seconds: float) -> None:
        """seconds: that a call should take, where nothing disturbs it."""
        with tempfile.TemporaryDirectory(prefix="relearnd-reference-") as folder:
            graph = Path(folder) / "reference.onnx"
            graph.write_bytes(write_graph())
            self._run = open_graph(graph, threads)
        self._images = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
        self.length = 1
        times = []
        for _ in range(WARM_UP_RUNS):
            before = time.perf_counter()
            self(self._images)
            times.append(time.perf_counter() - before)
        self.length = max(1, round(seconds / min(times)))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The images are its own, whatever is handed in: its work is always the same."""
        for _ in range(self.length):
            answers = self._run(self._images)
        return answers


def write_graph() -> bytes:
    """The network as ONNX: what networks of images spend their time on, with as many weights as leave the inner caches.

    uint8 (n, SIDE, SIDE, 3) -> float32 (n, 256).
    """
    shapes = {
        "stem": (32, 3, 3, 3), "depthwise": (32, 1, 3, 3), "pointwise": (128, 32, 1, 1), "dense": (128, 128, 3, 3),
        "head": (256, 128 * 4 * 4),
    }  # fmt: skip
    generator = np.random.default_rng(0)
    weights = {
        name: generator.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["channels first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels first", "stem"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], group=32, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "pointwise"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "dense"], ["f"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "head"], [OUTPUT], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written
