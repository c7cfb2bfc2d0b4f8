"""What a measurement was taken on: figures of two devices are never compared. Imports no engine.

What it says of a GPU (its model, driver and CUDA version) was not yet run on one.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

# What the packages are called whose import name is another.
PACKAGES = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13-bindings"}
ON_GPU = ("tensorrt", "tensorrt_rtx", "torch2trt")
PROC, CGROUPS, NVIDIA = Path("/proc"), Path("/sys/fs/cgroup"), Path("/proc/driver/nvidia")


def fingerprint(engine: str = "onnxruntime", threads: int = 1) -> str:
    """As "AMD EPYC 7B13, 2 cores, 16 GB, onnxruntime 1.22.0, 1 thread": all that figures depend on beside the artifact.

    Cores and memory are those given to this process. With more of them, or another version of the engine, it is
    another device: what was measured before counts no more.

    threads: of one session of the engine.
    """
    version = find_version(engine) or "not installed"
    host = f"{processor()}, {_count(cores(), 'core')}, {memory_gb()} GB"
    chip = f"{graphics()}, {host}" if engine in ON_GPU else host
    return f"{chip}, {engine} {version}, {_count(threads, 'thread')}"


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


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def processor() -> str:
    """The processor's model as the kernel names it."""
    lines = _read(PROC / "cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> float:
    """The cores that this process may use: its affinity, or the part of them that its control groups allow."""
    given: float = len(os.sched_getaffinity(0))
    for folder in _control_groups("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2: "150000 100000", or "max 100000"
        quota, period = quota or _read(folder / "cpu.cfs_quota_us"), period or _read(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit():
            given = min(given, round(int(quota) / int(period), 2))
    return given


def memory_gb() -> int:
    """The memory that this process may use, in 10^9 bytes: the machine's, or what its control groups allow of it."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE)
    limits = [int(total[1]) * 1024] if total else []
    for folder in _control_groups("memory"):
        said = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        limits += [int(said)] if said.isdigit() else []  # version 1 says a number beyond all memory for none
    return round(min(limits, default=0) / 1e9)


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for a controller, from its own to the root; of both versions."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        # In a container the path may be the one outside of it: the root of the mount is then its own.
        own = root / path.lstrip("/")
        while own != root:
            yield own
            own = own.parent
        yield root


def graphics() -> str:
    """The first NVIDIA GPU's model as its driver names it, with the versions of the driver and of CUDA."""
    for file in sorted((NVIDIA / "gpus").glob("*/information")):
        for line in _read(file).splitlines():
            if line.startswith("Model:"):
                driver = re.search(r"\s(\d+\.\d+(\.\d+)*)\s", _read(NVIDIA / "version"))
                versions = [f"driver {driver[1]}" if driver else "", _cuda()]
                return " ".join(filter(None, [line.partition(":")[2].strip(), *versions]))
    return "no GPU"


def _cuda() -> str:
    """The newest CUDA that the driver speaks, as "CUDA 12.4"; "" where that cannot be asked."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return ""
    return "" if failed else f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def _read(file: Path) -> str:
    """What the kernel says there; "" where it says nothing."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
