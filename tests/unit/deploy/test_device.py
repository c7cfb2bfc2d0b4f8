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


def test_processor_cores_and_engine_are_named() -> None:
    cores = len(os.sched_getaffinity(0))
    plural = "s" if cores > 1 else ""
    engine = f"onnxruntime {onnxruntime.__version__}"
    assert device.fingerprint() == f"{device.processor()}, {cores} core{plural}, {engine}, 1 thread"
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
