"""The words that say on what a measurement was taken."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from deploy import device
from deploy.engines import tensorrt_rtx

Start = Callable[..., subprocess.Popen[str]]


def test_processor_cores_memory_and_engine_are_named() -> None:
    cores = f"{device.cores():g} core{'' if device.cores() == 1 else 's'}"
    engine = f"onnxruntime {onnxruntime.__version__}"
    host = f"{device.processor()}, {cores}, {device.memory_gb()} GB"
    assert device.fingerprint() == f"{host}, {engine}, 1 thread"
    assert device.fingerprint(threads=4).endswith(f"{engine}, 4 threads")


def test_who_answers_is_told_by_chip_and_version_alone() -> None:
    assert device.answerer("onnxruntime") == f"{device.processor()}, onnxruntime {onnxruntime.__version__}"
    assert device.answerer("torch2trt").endswith("torch2trt not installed")


def test_the_processor_is_that_of_the_kernel() -> None:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert device.processor() == (names[0].strip() if names else platform.machine())


def test_the_cores_are_those_given_to_the_process(start: Start) -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}])\nfrom deploy.device import fingerprint; print(fingerprint())"
    said, errors = start("-c", code).communicate(timeout=60)
    assert ", 1 core, " in said, errors


def test_an_engine_that_is_not_installed_is_said_so() -> None:
    assert device.fingerprint("no-such-engine").endswith(", no-such-engine not installed, 1 thread")


def test_of_an_engine_on_a_gpu_the_gpu_is_named_too() -> None:
    said = device.fingerprint("tensorrt_rtx")
    assert said.startswith(f"{device.graphics()}, {device.processor()}, ")
    assert f", tensorrt_rtx {tensorrt_rtx.version()}, " in said


def test_a_kernel_that_tells_nothing_leaves_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert device.processor() == platform.machine()
    assert device.cores() == len(os.sched_getaffinity(0))
    assert device.memory_gb() == 0


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that say what a kernel would, in another machine's place."""
    for name in ("PROC", "CGROUPS", "NVIDIA"):
        monkeypatch.setattr(device, name, tmp_path / name)
    lay(tmp_path / "PROC" / "meminfo", "MemTotal:       16000000 kB\n")
    return tmp_path


def lay(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "cores", "gigabytes"),
    [
        ("0::/\n", {}, None, 16),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5, 16),
        ("0::/a/b\n", {"a/b/memory.max": "2000000000\n", "memory.max": "max\n"}, None, 2),
        (
            "3:cpu,cpuacct:/a\n2:memory:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "25000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            0.25,
            16,
        ),
        ("3:cpu:/\n2:memory:/away\n", {"memory/memory.limit_in_bytes": "1000000000\n"}, None, 1),
        ("2:memory:/\n", {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, None, 16),
    ],
    ids=["none", "version 2", "its memory", "version 1", "seen from within", "no limit in version 1"],
)
def test_cores_and_memory_are_those_that_control_groups_allow(
    kernel: Path, own: str, files: dict[str, str], cores: float | None, gigabytes: int
) -> None:
    lay(kernel / "PROC" / "self" / "cgroup", own)
    for name, text in files.items():
        lay(kernel / "CGROUPS" / name, text)
    assert device.cores() == (cores or len(os.sched_getaffinity(0)))
    assert device.memory_gb() == gigabytes


def test_of_a_gpu_model_and_driver_are_named(kernel: Path) -> None:
    """As NVIDIA's driver writes them; no such driver is here."""
    lay(kernel / "NVIDIA" / "gpus" / "0000:01:00.0" / "information", "Model: \t\t NVIDIA L4\nIRQ: 7\n")
    lay(
        kernel / "NVIDIA" / "version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: gcc 12.2.0\n",
    )
    assert device.graphics().startswith("NVIDIA L4 driver 570.86.15")
    assert device.fingerprint("tensorrt_rtx").startswith("NVIDIA L4 driver 570.86.15")
