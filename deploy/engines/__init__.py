"""The engines that can run a model, behind one small interface.

An engine is a module with the functions of `Engine`. To add one, write its file and its line in `ENGINES`.
The file imports nothing of this project: Triton's Python backend gets a copy of it beside the model and calls
its `load` in an environment that has the engine and numpy alone. It raises ValueError for what it cannot do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 (n, H, W, 3) -> probabilities float32 (n, classes); may be called from several threads at once."""

ENGINES = {
    "onnxruntime": "deploy.engines.onnxruntime",
    "openvino": "deploy.engines.openvino",
}


ACCELERATORS = {"onnxruntime": "cpu", "openvino": "cpu"}  # by engine


class Engine(Protocol):
    """What the rest of the package asks of an engine."""

    def version(self) -> str:
        """The runtime's own version."""

    def describe(self) -> Mapping[str, Any]:
        """{"precisions": […], "accelerator": "cpu" | "cuda", "device": None, or what artifacts are bound to}."""

    def build(self, model: Path, out: Path, precision: str) -> None:
        """Writes the engine's files of the model folder `model` into the empty folder `out`."""

    def load(self, artifact: Path, threads: int) -> Runner:
        """The artifact (or version) folder's files, ready to answer."""


def find_engine(name: str) -> Engine:
    """The engine of this name.

    Raises ValueError where there is none, or where its runtime is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    try:
        return cast(Engine, importlib.import_module(ENGINES[name]))
    except ImportError as error:
        raise ValueError(f"engine {name!r} is not installed here ({error}); install its package") from error


def source_file(name: str) -> Path:
    """The engine's own file, which Triton's Python backend gets a copy of. Imports nothing."""
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    return Path(__file__).with_name(ENGINES[name].rpartition(".")[2] + ".py")
