"""ONNX Runtime on the CPU: the embedded default. The graph is taken as it is and optimised at load."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

GRAPH = "model.onnx"
INPUT, OUTPUT = "images", "probabilities"


def version() -> str:
    return str(onnxruntime.__version__)


def describe() -> Mapping[str, Any]:
    # Symmetric int8 takes two to three times as long here.
    return {
        "graphs": {"fp32": "as exported", "int8": "asymmetric"},
        "flavour": "onnxruntime",
    }


def why_not_here() -> str | None:
    return None


def find_device(options: Mapping[str, Any]) -> str | None:
    return None


def build(model: Path, graph: Path, out: Path, precision: str, options: Mapping[str, Any]) -> None:
    """Copies the graph, once ONNX Runtime has read it and found the agreed input and output."""
    session = _open(graph, threads=1)
    names = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    if names != ([INPUT], [OUTPUT]):
        raise ValueError(f"{graph} has inputs {names[0]} and outputs {names[1]}, not {INPUT} and {OUTPUT}")
    shutil.copyfile(graph, out / GRAPH)


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    return open_graph(artifact / GRAPH, threads)


def open_graph(graph: Path, threads: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The graph of this file, ready to answer."""
    session = _open(graph, threads)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            answers: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        except Exception as error:  # its exception classes share no base of their own
            raise ValueError(f"ONNX Runtime cannot run the graph on {images.dtype} {images.shape}: {error}") from error
        return answers

    return run


def _open(graph: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that spins while it waits takes the core that another process needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no base of their own
        raise ValueError(f"{graph} is no graph that ONNX Runtime can run: {error}") from error
