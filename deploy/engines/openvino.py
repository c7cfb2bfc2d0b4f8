"""OpenVINO on the CPU. The graph is converted to its own format at build, and compiled at load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

GRAPH = "model.xml"
INPUT, OUTPUT = "images", "probabilities"


def version() -> str:
    return str(openvino.__version__).partition("-")[0]


def describe() -> Mapping[str, Any]:
    # Of the two styles of int8 the symmetric one is as fast on convolutions, up to a third faster on others, and the
    # one that it reads rightly beside a class token.
    return {
        "graphs": {"fp32": "as exported", "fp16": "as exported", "int8": "symmetric"},
        "flavour": "openvino",
    }


def why_not_here() -> str | None:
    return None


def find_device(options: Mapping[str, Any]) -> str | None:
    return None


def build(model: Path, graph: Path, out: Path, precision: str, options: Mapping[str, Any]) -> None:
    """Converts the graph to OpenVINO's own format. For fp16 the weights are halved: half the size, computed in f32."""
    read = _read(graph)
    names = [port.get_any_name() for port in read.inputs], [port.get_any_name() for port in read.outputs]
    if names != ([INPUT], [OUTPUT]):
        raise ValueError(f"{graph} has inputs {names[0]} and outputs {names[1]}, not {INPUT} and {OUTPUT}")
    openvino.save_model(read, out / GRAPH, compress_to_fp16=precision == "fp16")


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    # On processors with bfloat16 units OpenVINO computes in it by itself; what is proven as fp32 is served as fp32.
    hints = {
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": "NO",  # several processes share the cores
    }
    try:
        compiled = _core().compile_model(_read(artifact / GRAPH), "CPU", hints)
    except RuntimeError as error:
        raise ValueError(f"{artifact / GRAPH} cannot be compiled by OpenVINO: {_short(error)}") from error
    shape = compiled.input(INPUT).partial_shape
    local = threading.local()  # a request belongs to one thread at a time

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        given = f"{images.dtype} {images.shape}"
        if images.dtype != np.uint8 or not shape.compatible(openvino.PartialShape(list(images.shape))):
            raise ValueError(f"OpenVINO cannot run the graph on {given}: it takes uint8 {shape}")
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        try:
            answers = local.request.infer({INPUT: images})
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot run the graph on {given}: {_short(error)}") from error
        found: NDArray[np.float32] = np.array(answers[OUTPUT], np.float32)  # a copy: the request uses its own again
        return found

    return run


@cache
def _core() -> Any:
    """One for as long as the process lives.

    With it goes a stack of its CPU plugin that the thread still has for its signals: the next one that Python handles
    would end the process.
    """
    return openvino.Core()


def _read(graph: Path) -> Any:
    try:
        return _core().read_model(graph)
    except RuntimeError as error:
        raise ValueError(f"{graph} is no graph that OpenVINO can read: {_short(error)}") from error


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
