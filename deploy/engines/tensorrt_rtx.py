"""TensorRT-RTX, for RTX cards. It builds plans for a card that is elsewhere; answering is deploy/plan.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as bindings

from deploy import plan
from deploy.plan_builder import build_plan

load = plan.load
why_not_here = plan.explain_no_gpu


def version() -> str:
    return str(bindings.__version__)


def describe() -> Mapping[str, Any]:
    # Triton's own TensorRT backend reads TensorRT's plans alone.
    return {
        "graphs": {"fp32": "as exported", "fp16": "half", "int8": "symmetric"},
        "flavour": "python",
    }


def find_device(options: Mapping[str, Any]) -> str:
    """That of the option compute_capability ("8.9"), otherwise of this machine's GPU."""
    asked = options.get("compute_capability")
    device = f"sm{asked}".replace(".", "") if asked else plan.find_gpu()
    if device is None:
        raise ValueError('a plan is for one kind of GPU and none answers here; set compute_capability, as "8.9"')
    if device.upper() not in list_devices():
        known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in list_devices())
        raise ValueError(f"tensorrt_rtx builds for compute capability {known}, not {asked or device}")
    return device


def list_devices() -> list[str]:
    """As "SM89", in the order of their age."""
    found = [name for name in dir(bindings.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    return sorted(found, key=lambda name: int(name[2:]))


def build(model: Path, graph: Path, out: Path, precision: str, options: Mapping[str, Any]) -> None:
    build_plan(bindings.__name__, graph, out, find_device(options), options, cross=True)
