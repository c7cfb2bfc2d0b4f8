"""Answers with a plan of TensorRT, TensorRT-RTX or torch2trt on an NVIDIA GPU. Not yet run on a GPU.

    model.plan    what the builder wrote (deploy/plan_builder.py)
    plan.json     what it needs: bindings, version, device, bytes, largest batch

A copy of this file lies beside the plan in Triton. What it needs there besides numpy is the bindings' package and
`cuda-bindings` (which torch's own packages bring here): two calls to copy and one to run are no reason to have torch in
Triton's environment. Memory on the GPU is held until the process ends.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLAN, ABOUT = "model.plan", "plan.json"
INPUT, OUTPUT = "images", "probabilities"


def load(artifact: Path, threads: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The plan of this folder, ready to answer on this machine's first GPU.

    A batch larger than the plan's largest goes in parts. `threads` is of no use to a GPU. Raises ValueError where the
    plan is not whole, or was built by another version or for another device.
    """
    about, plan = read_plan(artifact)
    bindings = importlib.import_module(about["bindings"])
    check_version(about, str(bindings.__version__))
    check_device(about, find_gpu())
    run = open_plan(bindings, plan, f"{artifact / PLAN}")
    largest = int(about["max_batch_size"])

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.dtype != np.uint8 or list(images.shape[1:]) != about["input"]:
            wanted = f"uint8 of shape (n, {', '.join(map(str, about['input']))})"
            raise ValueError(f"the plan cannot run on {images.dtype} {images.shape}: it takes {wanted}")
        parts = [run(images[start : start + largest]) for start in range(0, len(images), largest)]
        return np.concatenate(parts)

    return answer


def read_plan(artifact: Path) -> tuple[Mapping[str, Any], bytes]:
    """(what plan.json says, the plan's bytes). Raises ValueError, naming the file, where it is not whole."""
    try:
        about = json.loads((artifact / ABOUT).read_text(encoding="utf-8"))
        plan = (artifact / PLAN).read_bytes()
        wanted = about["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the plan in {artifact} cannot be read ({error}); build it again") from error
    if len(plan) != wanted:
        raise ValueError(f"{artifact / PLAN} is cut off: {len(plan)} bytes of {wanted}; build it again")
    return about, plan


def check_version(about: Mapping[str, Any], version: str) -> None:
    """Raises ValueError where the plan was built by another version than `version`: it is never offered to another."""
    if about["version"] != version:
        built = f"{about['bindings']} {about['version']}"
        raise ValueError(f"the plan was built by {built} and this machine has {version}; build it again")


def check_device(about: Mapping[str, Any], device: str | None) -> None:
    """Raises ValueError where this machine's GPU is none, or another than the plan was built for."""
    if device is None:
        raise ValueError(f"the plan is for {about['device']} and {explain_no_gpu()}")
    if about["device"] != device:
        raise ValueError(f"the plan was built for {about['device']} and this machine's GPU is {device}; build it again")


def find_gpu() -> str | None:
    """The compute capability of this machine's first GPU, as "sm89"; None: there is none that answers."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
        major = call(cuda.cudaDeviceGetAttribute, cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor, 0)
        minor = call(cuda.cudaDeviceGetAttribute, cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor, 0)
    except (ImportError, RuntimeError, ValueError):
        return None
    return f"sm{major}{minor}"


def explain_no_gpu() -> str | None:
    """None where a GPU answers, otherwise a sentence."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
        count = call(cuda.cudaGetDeviceCount)
    except ImportError as error:
        return f"the package cuda-bindings is not installed here ({error})"
    except (RuntimeError, ValueError) as error:
        return f"no NVIDIA GPU answers here ({error})"
    return None if count else "there is no NVIDIA GPU here"


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call to CUDA. Raises ValueError, with CUDA's name of it, where it failed."""
    status, *results = function(*arguments)
    if int(status) != 0:
        raise ValueError(f"{function.__name__}: {status.name}")
    return results[0] if results else None


def open_plan(bindings: Any, plan: bytes, name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Answers batches up to the plan's largest: one at a time, since they share one context and the GPU anyhow."""
    cuda = importlib.import_module("cuda.bindings.runtime")
    runtime = bindings.Runtime(bindings.Logger(bindings.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ValueError(f"{name} cannot be loaded by {bindings.__name__} {bindings.__version__}; build it again")
    context = engine.create_execution_context()
    stream = call(cuda.cudaStreamCreate)
    lock = threading.Lock()
    held: dict[str, tuple[int, int]] = {}  # name -> (address on the GPU, bytes)

    def reserve(tensor: str, size: int) -> int:
        address, had = held.get(tensor, (0, 0))
        if size > had:
            if had:
                call(cuda.cudaFree, address)
            address = call(cuda.cudaMalloc, size)
            held[tensor] = (address, size)
            context.set_tensor_address(tensor, address)
        return address

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        given = np.ascontiguousarray(images)
        with lock:
            if not context.set_input_shape(INPUT, given.shape):
                raise ValueError(f"{name} does not take a batch of shape {given.shape}")
            answers = np.empty(tuple(context.get_tensor_shape(OUTPUT)), np.float32)
            source, target = reserve(INPUT, given.nbytes), reserve(OUTPUT, answers.nbytes)
            kinds = cuda.cudaMemcpyKind
            there, back = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
            call(cuda.cudaMemcpyAsync, source, given.ctypes.data, given.nbytes, there, stream)
            if not context.execute_async_v3(int(stream)):
                raise ValueError(f"{name} failed on a batch of shape {given.shape}")
            call(cuda.cudaMemcpyAsync, answers.ctypes.data, target, answers.nbytes, back, stream)
            call(cuda.cudaStreamSynchronize, stream)
        return answers

    run.keeps = (runtime, engine)  # type: ignore[attr-defined]  # the context uses both
    return run
