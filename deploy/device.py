"""What a measurement was taken on: figures of two devices are never compared. Imports no engine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

# What the packages are called whose import name is another.
PACKAGES = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13-bindings"}
ON_GPU = ("tensorrt", "tensorrt_rtx", "torch2trt")


def fingerprint(engine: str = "onnxruntime", threads: int = 1) -> str:
    """As "AMD EPYC 7B13, 2 cores, onnxruntime 1.22.0, 1 thread": processor, cores given to this process, the engine's.

    threads: of one session of the engine.
    """
    cores = len(os.sched_getaffinity(0))
    version = find_version(engine) or "not installed"
    chip = f"{graphics()}, {processor()}" if engine in ON_GPU else processor()
    return f"{chip}, {_count(cores, 'core')}, {engine} {version}, {_count(threads, 'thread')}"


def answerer(engine: str) -> str:
    """What the answers of an engine's artifacts depend on beside artifact and images: chip and version.

    As "AMD EPYC 7B13, onnxruntime 1.22.0".
    """
    chip = graphics() if engine in ON_GPU else processor()
    return f"{chip}, {engine} {find_version(engine) or 'not installed'}"


def package(engine: str) -> str:
    """What is to be installed for the engine."""
    return PACKAGES.get(engine, engine)


def find_version(engine: str) -> str | None:
    """Of the engine's package; None: it is not installed."""
    try:
        return importlib.metadata.version(package(engine))
    except importlib.metadata.PackageNotFoundError:
        return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def processor() -> str:
    """The processor's model as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def graphics() -> str:
    """The first NVIDIA GPU's model as its driver names it."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return "no GPU"
