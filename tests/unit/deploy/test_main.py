"""The child that runs the stages: what it says, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from policies.facts import Job, StageOrder, to_dict
from tests.unit.deploy.models import class_names, make_artifact, make_model, noise, order, read_json, write_pixels

Start = Callable[..., subprocess.Popen[str]]
CLASSES = class_names(4)
SECONDS = 60.0


@pytest.fixture
def run(tmp_path: Path, start: Start) -> Callable[..., subprocess.Popen[str]]:
    """Starts the child on a job of these stages."""

    def go(stages: Sequence[tuple[str, dict[str, Any]]], earlier: dict[str, Any] | None = None) -> Any:
        orders = tuple(StageOrder(name, inputs) for name, inputs in stages)
        file = tmp_path / "job.json"
        file.write_text(json.dumps(to_dict(Job("token1", "deploy", orders, earlier or {}))), encoding="utf-8")
        return start("-m", "deploy", file, cwd=tmp_path)

    return go


def hear(child: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """All lines of its protocol, and what else it wrote. Nothing but lines of this token is on its stdout."""
    said, errors = child.communicate(timeout=SECONDS)
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line.pop("token") for line in lines} <= {"token1"}
    return lines, errors


def measuring(artifact: Path | None, seconds_max: float = 0.2) -> dict[str, Any]:
    given = {"artifact": str(artifact) if artifact else None, "batch_size": 1, "concurrency": 1, "threads": 1}
    return {**given, "seconds_max": seconds_max}


def test_all_stages_run_in_one_child_each_with_what_came_before(tmp_path: Path, run: Start) -> None:
    model = make_model(tmp_path / "naïve model", CLASSES)
    index = write_pixels(tmp_path / "pixels", CLASSES, [("judge", "class1"), ("tune", "class2")] * 3, noise(6))
    answers = tmp_path / "answers.json"
    proving = {"artifact": None, "pixels": str(index), "tune": None, "threads": 1, "answers": str(answers)}
    child = run(
        [("build", order(None, tmp_path / "artifacts")), ("prove", proving), ("measure", measuring(None))],
        earlier={"export": {"path": str(model)}, "pixels": {"pixels": str(index)}},
    )
    lines, errors = hear(child)
    assert child.returncode == 0, errors
    events = [(line["stage"], line["event"]) for line in lines]
    for name in ("build", "prove", "measure"):
        mine = [event for stage, event in events if stage == name]
        assert (mine[0], mine[-1]) == ("started", "finished")
        assert set(mine[1:-1]) == {"progress"}
    assert [stage for stage, event in events if event == "finished"] == ["build", "prove", "measure"]
    built, proved, measured = (line["outputs"] for line in lines if line["event"] == "finished")
    assert built["artifact"] == proved["artifact"] == measured["artifact"]
    assert Path(built["path"]).is_dir()
    assert len(read_json(answers)["samples"]) == proved["judge_samples"] == 3


def test_what_cannot_be_done_is_one_line_and_no_traceback(tmp_path: Path, run: Start) -> None:
    model = make_model(tmp_path / "model", CLASSES)
    (model / "model.onnx").write_bytes(b"junk")
    child = run([("build", order(model, tmp_path / "artifacts")), ("measure", measuring(None))])
    lines, errors = hear(child)
    assert child.returncode == 1
    assert [(line["stage"], line["event"]) for line in lines] == [("build", "started"), ("build", "failed")]
    assert lines[-1]["error"].startswith(f"{model / 'model.onnx'} is damaged: ")
    assert errors == ""


def test_a_bug_is_a_traceback_and_no_line(tmp_path: Path, run: Start) -> None:
    child = run([("build", {"engine": "onnxruntime"})])  # no model is named
    lines, errors = hear(child)
    assert child.returncode == 1
    assert [line["event"] for line in lines] == ["started"]
    assert errors.splitlines()[-1] == "KeyError: 'model'"


def test_a_stage_that_it_does_not_know_is_no_success(run: Start) -> None:
    child = run([("train", {})])
    lines, errors = hear(child)
    assert child.returncode == 1
    assert "finished" not in [line["event"] for line in lines]
    assert "train" in errors


def test_a_job_without_stages_is_done(run: Start) -> None:
    child = run([])
    assert hear(child) == ([], "")
    assert child.returncode == 0


@pytest.mark.parametrize("content", [None, "junk", "{}"])
def test_a_job_that_cannot_be_read_is_no_success(tmp_path: Path, start: Start, content: str | None) -> None:
    file = tmp_path / "job.json"
    if content is not None:
        file.write_text(content)
    child = start("-m", "deploy", file)
    lines, errors = hear(child)
    assert (child.returncode, lines) == (1, [])
    assert errors


def test_what_libraries_print_is_no_line_of_the_protocol(tmp_path: Path, start: Start) -> None:
    """What is printed, by Python and below it, goes where the words for people go."""
    code = (
        "import os, sys\nfrom deploy import __main__ as child, build\n"
        "def chatter(*_):\n    print('from python', flush=True)\n    os.write(1, b'from below\\n')\n    return {}\n"
        "build.run = chatter\nsys.exit(child.main())"
    )
    file = tmp_path / "job.json"
    file.write_text(json.dumps(to_dict(Job("token1", "deploy", (StageOrder("build", {}),)))))
    child = start("-c", code, file)
    lines, errors = hear(child)
    assert [line["event"] for line in lines] == ["started", "finished"]
    assert errors.splitlines() == ["from python", "from below"]


def until(child: subprocess.Popen[str], stage: str, event: str) -> None:
    assert child.stdout is not None
    for text in child.stdout:
        line = json.loads(text)
        if (line["stage"], line["event"]) == (stage, event):
            return
    raise AssertionError("it ended before it said so")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_it_and_what_measures_for_it(
    tmp_path: Path, run: Start, eventually: Callable[..., None], number: int, status: int
) -> None:
    child = run([("measure", measuring(make_artifact(tmp_path, CLASSES), seconds_max=1e9))])
    until(child, "measure", "started")
    family = psutil.Process(child.pid)
    eventually(lambda: [other for other in family.children() if "deploy.measure" in other.cmdline()])
    (other,) = family.children()
    child.send_signal(number)
    lines, errors = hear(child)
    assert (child.returncode, errors) == (status, "")
    assert {line["event"] for line in lines} <= {"progress"}  # that it has its turn
    eventually(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)
