"""The engines that can run a model, behind one small interface.

An engine is a module with the functions of `Engine`. To add one, write its file and its line in `ENGINES`, which says
what can be known of it where its runtime is not installed.
What Triton's Python backend loads it with is a copy of one file beside the model, in an environment that has the
engine and numpy alone: that file imports nothing of this project when it is loaded. It is the engine's own, or
the one that engines of a kind share (`loader`). An engine raises ValueError for what it cannot do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 (n, H, W, 3) -> probabilities float32 (n, classes); may be called from several threads at once."""


@dataclass(frozen=True, slots=True)
class Line:
    """An engine's line in the registry."""

    module: str
    accelerator: Literal["cpu", "cuda"]
    precisions: tuple[str, ...]
    loader: str = ""  # the module that loads its artifacts, where that is not its own


ENGINES = {
    "onnxruntime": Line("deploy.engines.onnxruntime", "cpu", ("fp32", "int8")),
    "openvino": Line("deploy.engines.openvino", "cpu", ("fp32", "fp16", "int8")),
    "tensorrt": Line("deploy.engines.tensorrt", "cuda", ("fp32", "fp16", "int8"), "deploy.plan"),
    "tensorrt_rtx": Line("deploy.engines.tensorrt_rtx", "cuda", ("fp32", "fp16", "int8"), "deploy.plan"),
    "torch2trt": Line("deploy.engines.torch2trt", "cuda", ("fp32", "fp16"), "deploy.plan"),
}


class Engine(Protocol):
    """What the rest of the package asks of an engine."""

    def version(self) -> str:
        """The runtime's own version."""

    def describe(self) -> Mapping[str, Any]:
        """{"graphs": {precision: style}, "flavour": its own in Triton}.

        graphs: the precisions that it builds, each with the style of graph that it wants (deploy/precision.py).
        """

    def why_not_here(self) -> str | None:
        """None where this machine can run its artifacts, otherwise why not, as "no NVIDIA GPU answers here"."""

    def find_device(self, options: Mapping[str, Any]) -> str | None:
        """What an artifact built with these options is bound to, as "sm89"; None: to nothing."""

    def build(self, model: Path, graph: Path, out: Path, precision: str, options: Mapping[str, Any]) -> None:
        """Writes its files into the empty folder `out`, of the graph in its style, or of the model folder itself.

        options: "max_batch_size", and where it is bound to a device perhaps "compute_capability", as "8.9".
        """

    def load(self, artifact: Path, threads: int) -> Runner:
        """The artifact (or version) folder's files, ready to answer."""


def find_engine(name: str) -> Engine:
    """The engine of this name.

    Raises ValueError where there is none, or where its runtime is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    try:
        return cast(Engine, importlib.import_module(ENGINES[name].module))
    except ImportError as error:
        raise ValueError(f"engine {name!r} is not installed here ({error}); install its package") from error


def find_installed() -> dict[str, Engine]:
    """The engines whose runtimes are installed here, by name."""
    found = {}
    for name in ENGINES:
        try:
            found[name] = find_engine(name)
        except ValueError:
            continue
    return found


def find_style(name: str, engine: Engine, precision: str) -> str:
    """The style of graph that the engine wants for this precision. Raises ValueError where it builds no such."""
    graphs: Mapping[str, str] = engine.describe()["graphs"]
    if precision not in graphs:
        raise ValueError(f"{name} builds {', '.join(graphs)}, not {precision!r}")
    return graphs[precision]


def source_file(name: str) -> Path:
    """The file that loads the engine's artifacts, which Triton's Python backend gets a copy of. Imports nothing."""
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are: {', '.join(sorted(ENGINES))}")
    package = Path(__file__).resolve().parents[1]
    _, *parts = (ENGINES[name].loader or ENGINES[name].module).split(".")
    return package.joinpath(*parts).with_suffix(".py")
