"""`relearn adopt`: a model that was trained elsewhere.

A child checks the file and makes the model folder while the person waits, so that what is wrong with it is said at
once and nothing has changed; the daemon is asked to build, prove and judge it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Literal

import typer

from daemon import constraint_file, jobs, text_file
from daemon.command import HERE, AsJson, Workspace, ask, find_config
from daemon.config import Config
from daemon.errors import DaemonNotRunning, RelearnError, UsageError
from daemon.lock import is_running
from policies.facts import Job, StageOrder, to_dict


def adopt(
    target: Annotated[str, typer.Argument(help="The Triton model.")],
    model: Annotated[Path, typer.Argument(help="An ONNX file: images in, one row of classes out.")],
    classes: Annotated[Path, typer.Option(help="The names of its classes, one a line, in the order of its outputs.")],
    scale: Annotated[float | None, typer.Option(help="Pixels of 0 to 255 are divided by this: 255, or 1.")] = None,
    mean: Annotated[str | None, typer.Option(help="Then this is subtracted: 0.485,0.456,0.406, or one.")] = None,
    std: Annotated[str | None, typer.Option(help="Then it is divided by this: 0.229,0.224,0.225, or one.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc, where its shape does not say.")] = None,
    logits: Annotated[bool, typer.Option("--logits", help="It answers with logits: a softmax is put behind.")] = False,
    workspace: Workspace = HERE,
    as_json: AsJson = False,
) -> None:
    """Takes a model that was trained elsewhere: it is built, proven, measured and judged as any other."""
    config = find_config(workspace)
    if layout not in (None, "nchw", "nhwc"):
        raise UsageError(f"--layout {layout}: write nchw or nhwc")
    if scale is not None and not math.isfinite(scale):
        raise UsageError(f"--scale {scale}: write a number: 255, or 1")
    expected = {
        "scale": scale, "mean": read_numbers("--mean", mean), "std": read_numbers("--std", std), "layout": layout,
        "logits": logits,
    }  # fmt: skip
    names = read_classes(classes)
    if not is_running(config.state):
        raise DaemonNotRunning
    made = make_folder(config, target, model, names, expected)
    ask(config, "adopt", as_json, target=target, model=made["model"])


def read_numbers(option: str, text: str | None) -> list[float] | None:
    """Numbers with commas between. Raises UsageError."""
    try:
        numbers = None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if numbers and not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option} {text}: write one number, or three with commas between")
    return numbers


def read_classes(file: Path) -> list[str]:
    """The names, one a line. Raises UsageError, naming file and line, for an empty or repeated one."""
    try:
        lines = text_file.read_text(file).rstrip("\r\n").replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        raise UsageError(f"{file}: is not there; write the names of the classes, one a line") from None
    seen: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise UsageError(f"{file}:{number}: {name!r} is no name of a class; write one a line, and nothing else")
        if name in seen:
            raise UsageError(f"{file}:{number}: {name!r} stands in line {seen[name]} too; each class has its own name")
        seen[name] = number
    if len(seen) < 2:
        raise UsageError(f"{file}: names one class; a classifier has two at least")
    return list(seen)


def make_folder(
    config: Config, target: str, model: Path, classes: Sequence[str], expected: dict[str, Any]
) -> dict[str, Any]:
    """The model folder of the file, in the state folder: what the stage `adopt` says of it. Raises UsageError."""
    file = config.constraints / f"{target}.toml"
    if not file.is_file():
        raise UsageError(f"{file}: is not there; write what the Triton model {target!r} must fulfil first")
    if model.exists() and not model.is_file():
        raise UsageError(f"{model}: is no regular file")
    requirement = constraint_file.read(file)
    inputs = {
        "file": str(model.absolute()),
        "models": str(config.state / "models"),
        "classes": list(classes),
        "height": requirement.height,
        "width": requirement.width,
        "resize": config.settings.input.resize,
        "expected": expected,
    }
    return run_stage("pipeline", "adopt", inputs)


def run_stage(package: Literal["pipeline", "deploy"], name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Runs a child with one stage to its end. Raises UsageError with what the stage says is wrong."""
    job = Job(f"{name}.by-hand", package, (StageOrder(name, inputs),), threads=jobs.training_threads(0))
    with NamedTemporaryFile("w", encoding="utf-8", prefix=f"relearn-{name}-", suffix=".json") as file:
        file.write(json.dumps(to_dict(job)))
        file.flush()
        command = [sys.executable, "-P", "-m", package, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        if line["event"] == "failed":
            raise UsageError(line["error"])
        if line["event"] == "finished":
            outputs: dict[str, Any] = line["outputs"]
            return outputs
    raise RelearnError(f"{name} ended with status {done.returncode}: {done.stderr.strip()[-1000:]}")
