"""Builds plans with TensorRT or TensorRT-RTX: one API, told by the module that binds it.

Both know only strongly typed networks, so that the precision is that of the graph. The batch is dynamic, from one
image to `max_batch_size`, and best at `best_batch_size`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.plan import ABOUT, INPUT, OUTPUT, PLAN, explain_no_gpu, find_gpu

BEST_BATCH_SIZE = 8


def build_plan(
    module: str, graph: Path, out: Path, device: str, options: Mapping[str, Any], cross: bool = False
) -> None:
    """Writes model.plan and plan.json of the graph.

    module: of the bindings; device: as "sm89"; cross: built for that device wherever this runs, otherwise for the
    GPU of this machine; options: "max_batch_size". Raises ValueError, with the builder's words, for what it refuses.
    """
    bindings = importlib.import_module(module)
    log = make_log(bindings)
    builder = bindings.Builder(log)
    network = read_network(bindings, builder, log, graph)
    images = network.get_input(0)
    size = list(images.shape[1:])
    config = builder.create_builder_config()
    config.clear_flag(bindings.BuilderFlag.TF32)  # what is proven as fp32 is computed as fp32
    if cross:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(bindings.ComputeCapability, device.upper()), 0)
    largest = int(options["max_batch_size"])
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, *size), (min(BEST_BATCH_SIZE, largest), *size), (largest, *size))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(f"{name_builder(bindings)} cannot build {graph.name}: {log.first()}")
    write_plan(bindings, bytes(plan), out, device, size, largest)


def find_own_gpu(engine: str, options: Mapping[str, Any]) -> str:
    """This machine's GPU, as "sm89", for an engine that builds on the GPU alone that is to run the plan.

    Raises ValueError where there is none, or the option compute_capability ("8.9") asks for another.
    """
    device = find_gpu()
    if device is None:
        raise ValueError(f"{engine} builds on the GPU that is to run the plan, and {explain_no_gpu()}")
    asked = options.get("compute_capability")
    if asked and device != f"sm{asked}".replace(".", ""):
        raise ValueError(f"{engine} builds for this machine's GPU, {device}, and not for compute capability {asked}")
    return device


def write_plan(bindings: Any, plan: bytes, out: Path, device: str, size: list[int], largest: int) -> None:
    """The plan, and beside it what it needs."""
    about = {
        "bindings": bindings.__name__,
        "version": str(bindings.__version__),
        "device": device,
        "bytes": len(plan),
        "input": size,
        "max_batch_size": largest,
    }
    (out / PLAN).write_bytes(plan)
    (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_network(bindings: Any, builder: Any, log: Any, graph: Path) -> Any:
    """The graph as the builder's network, with the agreed input and output."""
    network = builder.create_network(1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = bindings.OnnxParser(network, log)
    if not parser.parse(graph.read_bytes()):
        raise ValueError(f"{name_builder(bindings)} cannot read {graph.name}: {explain_refusal(parser, log)}")
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
    if names != ([INPUT], [OUTPUT]):
        raise ValueError(f"{graph} has inputs {names[0]} and outputs {names[1]}, not {INPUT} and {OUTPUT}")
    kinds = inputs[0].dtype, outputs[0].dtype
    shape = tuple(inputs[0].shape)
    if kinds != (bindings.DataType.UINT8, bindings.DataType.FLOAT) or len(shape) != 4 or shape[0] != -1:
        raise ValueError(
            f"{graph} takes {kinds[0].name} {shape} and answers {kinds[1].name}; "
            "agreed are UINT8 of an open batch, height, width and channels, and FLOAT"
        )
    return network


def explain_refusal(parser: Any, log: Any) -> str:
    """The operator that was refused and why, as far as the parser says."""
    if not parser.num_errors:
        return str(log.first())
    error = parser.get_error(0)
    if not error.node_operator():
        return str(error.desc())
    reason = "" if error.desc() == "false" else f": {error.desc()}"  # so it says that it knows no such operator
    return f"it refuses the operator {error.node_operator()}{reason}"


def name_builder(bindings: Any) -> str:
    return f"{bindings.__name__} {bindings.__version__}"


def make_log(bindings: Any) -> Any:
    """A log for the builder that keeps its errors."""

    class Log(bindings.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            bindings.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= bindings.ILogger.ERROR:
                self.errors.append(message.strip())

        def first(self) -> str:
            """The first error; what it says of a missing GPU comes of a build elsewhere and is no reason."""
            words = [error for error in self.errors if "cudaError" not in error]
            return (words or self.errors or ["it gave no reason"])[0]

    return Log()
