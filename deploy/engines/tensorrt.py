"""TensorRT. It builds plans on the GPU that is to run them; answering is deploy/plan.py. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorrt as bindings

from deploy import plan
from deploy.plan_builder import build_plan, find_own_gpu

load = plan.load
why_not_here = plan.explain_no_gpu


def version() -> str:
    return str(bindings.__version__)


def describe() -> Mapping[str, Any]:
    return {
        "graphs": {"fp32": "as exported", "fp16": "half", "int8": "symmetric"},
        "flavour": "tensorrt_plan",
    }


def find_device(options: Mapping[str, Any]) -> str:
    """That of this machine's GPU, which the option compute_capability, where it is set, has to be."""
    return find_own_gpu("tensorrt", options)


def build(model: Path, graph: Path, out: Path, precision: str, options: Mapping[str, Any]) -> None:
    device = find_own_gpu("tensorrt", options)
    build_plan(bindings.__name__, graph, out, device, options)
