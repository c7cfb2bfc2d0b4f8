"""The text of a Triton model configuration (config.pbtxt), complete, so that nothing is left to auto-completion.

The configuration belongs to the model, not to a version. It names the versions to serve and the labels file,
so that replacing this one file is the moment at which a switch happens on disk. Source of the fields:
triton-inference-server/common, protobuf/model_config.proto; the parameters are those of each backend's README.

A flavour is how Triton runs an artifact: by the Python backend with the engine's own package, or by a backend of
Triton's for the engine. The native ones are not yet run: the packaged server brings the Python backend alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MARK = "# Written by relearnd; edits are lost at the next switch."
Flavour = Literal["python", "onnxruntime", "openvino", "tensorrt_plan"]


@dataclass(frozen=True, slots=True)
class Backend:
    """What the configuration says of a flavour, and what of the artifact a version holds."""

    name: str  # the lines that name it
    files: tuple[str, ...]  # of the engine, first the one that Triton opens; none: all that the artifact has
    threads: tuple[tuple[str, str], ...]  # parameters and their values; {threads}: of the engine, an instance
    kind: str  # of the instances
    open_output: bool = False  # whether versions of different numbers of classes may stand side by side


FLAVOURS: Mapping[str, Backend] = {
    "python": Backend('backend: "python"', (), (("threads", "{threads}"),), "KIND_CPU", open_output=True),
    "onnxruntime": Backend(
        'platform: "onnxruntime_onnx"\nbackend: "onnxruntime"',
        ("model.onnx",),
        (("intra_op_thread_count", "{threads}"), ("inter_op_thread_count", "1")),
        "KIND_CPU",
    ),
    "openvino": Backend(
        'backend: "openvino"',
        ("model.xml", "model.bin"),
        (("INFERENCE_NUM_THREADS", "{threads}"), ("NUM_STREAMS", "1")),
        "KIND_CPU",
    ),
    "tensorrt_plan": Backend('platform: "tensorrt_plan"\nbackend: "tensorrt"', ("model.plan",), (), "KIND_GPU"),
}


@dataclass(frozen=True, slots=True)
class Serving:
    """How a target's model is served.

    Few threads an instance and small batches answered fastest on small machines.
    """

    flavour: Flavour = "python"
    max_batch_size: int = 4  # images that Triton runs at once, at most
    queue_delay_us: int = 0  # how long a request may wait for others to join it, microseconds
    instances: int = 2
    threads: int = 1  # of the engine, an instance


def write_config(
    name: str,
    size: Mapping[str, Any],
    versions: Sequence[int],
    labels: str,
    serving: Serving,
    warm_up: bool = True,
    classes: int | None = None,
) -> str:
    """The configuration of model `name`.

    size: {"height", "width", "channels"} of its input; versions: those to be loaded, clients get the highest;
    labels: the name of the labels file; classes: how many. With the Python backend the output's dimension is open,
    since the versions may know different numbers of classes; Triton's own backends compare it with the graph's and
    refuse an open one. Raises ValueError where Triton would not take it.
    """
    check(versions, serving, classes)
    flavour = FLAVOURS[serving.flavour]
    answers = -1 if flavour.open_output else classes
    labelled = f"label_filename: {quote(labels)}"
    dims = f"[ {size['height']}, {size['width']}, {size['channels']} ]"
    parts = [
        MARK,
        f"name: {quote(name)}",
        flavour.name,
        *[f"default_model_filename: {quote(file)}" for file in flavour.files[:1]],
        f"max_batch_size: {serving.max_batch_size}",
        f'input [ {{ name: "images" data_type: TYPE_UINT8 dims: {dims} }} ]',
        f'output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {answers} ] {labelled} }} ]',
        f"version_policy {{ specific {{ versions: [ {', '.join(map(str, sorted(versions)))} ] }} }}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {serving.queue_delay_us} }}",
        f"instance_group [ {{ count: {serving.instances} kind: {flavour.kind} }} ]",
        *[write_parameter(key, value.format(threads=serving.threads)) for key, value in flavour.threads],
    ]
    if warm_up:
        parts.append(write_warm_up(dims, serving))
    return "\n".join(parts) + "\n"


def find_misfit(artifact: Mapping[str, Any], serving: Serving) -> str | None:
    """Why the artifact of this manifest cannot be served so; None: it can.

    Every artifact fits the flavour python; Triton's TensorRT backend takes no batch above the plan's own largest.
    """
    native, flavour = artifact.get("flavour", "python"), serving.flavour
    if flavour not in ("python", native):
        fitting = " or ".join(sorted({"python", native}))
        return f"an artifact of {artifact['engine']} is served as {fitting}, not as {flavour}"
    largest = artifact.get("max_batch_size")
    if flavour == "tensorrt_plan" and largest is not None and serving.max_batch_size > largest:
        return f"the plan was built for batches up to {largest}, and serving.max_batch_size is {serving.max_batch_size}"
    return None


def check(versions: Sequence[int], serving: Serving, classes: int | None) -> None:
    if not versions or min(versions) < 1:
        raise ValueError(f"a model serves versions from 1 upwards, not {list(versions)}")
    for field in ("max_batch_size", "instances", "threads"):
        if getattr(serving, field) < 1:
            raise ValueError(f"serving.{field} must be at least 1, not {getattr(serving, field)}")
    if serving.queue_delay_us < 0:
        raise ValueError(f"serving.queue_delay_us must not be negative, it is {serving.queue_delay_us}")
    if serving.flavour not in FLAVOURS:
        raise ValueError(f"there is no flavour {serving.flavour!r}; there are: {', '.join(FLAVOURS)}")
    if classes is None and not FLAVOURS[serving.flavour].open_output:
        raise ValueError(f"the flavour {serving.flavour} needs the number of classes")


def write_parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}"


def write_warm_up(dims: str, serving: Serving) -> str:
    """One run of the smallest and of the largest batch before a version counts as ready."""
    value = f'{{ key: "images" value {{ data_type: TYPE_UINT8 dims: {dims} random_data: true }} }}'
    samples = [
        f'{{ name: "batch of {size}" batch_size: {size} inputs {value} }}'
        for size in sorted({1, serving.max_batch_size})
    ]
    return f"model_warmup [ {', '.join(samples)} ]"


def quote(text: str) -> str:
    """The text as a protobuf string literal (its escapes are those of JSON for what can stand in a name)."""
    return json.dumps(text, ensure_ascii=False)
