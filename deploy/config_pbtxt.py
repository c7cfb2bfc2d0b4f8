"""The text of a Triton model configuration (config.pbtxt), complete, so that nothing is left to auto-completion.

The configuration belongs to the model, not to a version. It names the versions to serve and the labels file,
so that replacing this one file is the moment at which a switch happens on disk. Source of the fields:
triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MARK = "# Written by relearnd; edits are lost at the next switch."
Flavour = Literal["python"]
FLAVOURS: Mapping[str, str] = {
    "python": 'backend: "python"',
    # Others come here: 'platform: "onnxruntime_onnx"', 'backend: "openvino"', 'platform: "tensorrt_plan"'.
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
) -> str:
    """The configuration of model `name`.

    size: {"height", "width", "channels"} of its input; versions: those to be loaded, clients get the highest;
    labels: the name of the labels file. The output's dimension is open, since the versions may know different
    numbers of classes. Raises ValueError where Triton would not take it.
    """
    check(versions, serving)
    dims = f"[ {size['height']}, {size['width']}, {size['channels']} ]"
    parts = [
        MARK,
        f"name: {quote(name)}",
        FLAVOURS[serving.flavour],
        f"max_batch_size: {serving.max_batch_size}",
        f'input [ {{ name: "images" data_type: TYPE_UINT8 dims: {dims} }} ]',
        f'output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ -1 ] label_filename: {quote(labels)} }} ]',
        f"version_policy {{ specific {{ versions: [ {', '.join(map(str, sorted(versions)))} ] }} }}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {serving.queue_delay_us} }}",
        f"instance_group [ {{ count: {serving.instances} kind: KIND_CPU }} ]",
        f'parameters {{ key: "threads" value {{ string_value: "{serving.threads}" }} }}',
    ]
    if warm_up:
        parts.append(write_warm_up(dims, serving))
    return "\n".join(parts) + "\n"


def check(versions: Sequence[int], serving: Serving) -> None:
    if not versions or min(versions) < 1:
        raise ValueError(f"a model serves versions from 1 upwards, not {list(versions)}")
    for field in ("max_batch_size", "instances", "threads"):
        if getattr(serving, field) < 1:
            raise ValueError(f"serving.{field} must be at least 1, not {getattr(serving, field)}")
    if serving.queue_delay_us < 0:
        raise ValueError(f"serving.queue_delay_us must not be negative, it is {serving.queue_delay_us}")
    if serving.flavour not in FLAVOURS:
        raise ValueError(f"there is no flavour {serving.flavour!r}; there are: {', '.join(FLAVOURS)}")


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
