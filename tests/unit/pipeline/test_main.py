"""The child process: its protocol on stdout, its exit status, and what it says when it cannot go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.__main__ import STAGES, find_stage
from policies.facts import Job, StageOrder
from policies.job import StageError, run_stages

Start = Callable[..., Any]


@pytest.fixture
def decoding(colours: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The inputs of the stage that decodes the colours."""

    def order(**more: Any) -> dict[str, Any]:
        place = {"store": colours.store, "cache": tmp_path / "cache", "snapshot": colours.snapshots["good"]}
        return {**place, "height": 16, "width": 16, "resize": "stretch", **more}

    return order


def test_a_stage_that_finishes_says_its_outputs(start: Start, decoding: Any, tmp_path: Path) -> None:
    ended = start({"pixels": decoding()}, token="t7 ü").end()
    assert ended.status == 0
    assert {(line["token"], line["stage"]) for line in ended.lines} == {("t7 ü", "pixels")}
    events = [line["event"] for line in ended.lines]
    assert (events[0], events[-1]) == ("started", "finished") and set(events[1:-1]) == {"progress"}
    assert ended.lines[-2].items() >= {"done": 120, "total": 120, "unit": "image"}.items()
    assert ended.lines[-1]["outputs"].items() >= {"samples": 120, "decoded": 120}.items()
    assert Path(ended.lines[-1]["outputs"]["pixels"]).is_relative_to(tmp_path / "cache")


def test_stages_run_in_order_and_hand_on_what_they_made(interrupted: Any) -> None:
    _, (_, _, finished) = interrupted
    assert finished.status == 0
    ends = [(line["stage"], line["event"]) for line in finished.lines if line["event"] != "progress"]
    assert ends == [
        (name, event) for name in ("pixels", "train", "evaluate", "export") for event in ("started", "finished")
    ]
    assert {line["token"] for line in finished.lines} == {"t1"}


def test_a_stage_that_cannot_go_on_says_so_in_one_line(start: Start, decoding: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.snapshot").write_bytes(b"damaged")
    ended = start({"pixels": decoding(snapshot=tmp_path / "bad.snapshot"), "observe": {}}).end()
    assert ended.status == 1
    assert [line["event"] for line in ended.lines] == ["started", "failed"]
    failed = ended.lines[-1]
    assert (failed["token"], failed["stage"]) == ("t1", "pixels")
    assert str(tmp_path / "bad.snapshot") in failed["error"] and "\n" not in failed["error"]
    assert ended.words == ""


def test_what_a_library_prints_is_no_line_of_the_protocol(start: Start, decoding: Any, tmp_path: Path) -> None:
    talks = """
import os, sys
def hear(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".snapshot"):
        os.write(1, b"chatter")
sys.addaudithook(hear)
"""
    (tmp_path / "sitecustomize.py").write_text(talks)
    ended = start({"pixels": decoding()}, modules=str(tmp_path)).end()
    assert (ended.status, ended.words) == (0, "chatter")
    assert ended.lines[-1]["event"] == "finished"


def test_a_defect_leaves_its_traceback(start: Start, decoding: Any) -> None:
    ended = start({"pixels": decoding(height="tall")}).end()
    assert ended.status == 1
    assert [line["event"] for line in ended.lines] == ["started"]
    assert "Traceback" in ended.words and "ValueError" in ended.words


def test_an_unknown_stage_is_no_success(start: Start) -> None:
    ended = start({"dance": {}}).end()
    assert ended.status == 1
    assert "finished" not in {line["event"] for line in ended.lines}
    assert "dance" in ended.words


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b'{"token": "t1"}', b'{"token": "t1", "package": "pipeline", "stages": [{}]}', b"\xff"],
)
def test_a_job_that_cannot_be_read_is_no_success(start: Start, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "job.json"
    if content is not None:
        file.write_bytes(content)
    ended = start(file).end()
    assert ended.status == 1
    assert ended.lines == []
    assert "Error" in ended.words


def test_a_job_of_a_later_version_runs(start: Start, decoding: Any, tmp_path: Path) -> None:
    job = {
        "token": "t1",
        "package": "pipeline",
        "stages": [{"name": "pixels", "inputs": decoding(), "priority": 3}],
        "colour": "blue",
    }
    (tmp_path / "job.json").write_text(json.dumps(job, default=str))
    assert start(tmp_path / "job.json").end().status == 0


def test_asked_to_end_it_ends_with_143(
    start: Start, decoding: Any, keep: Any, tmp_path: Path, write_snapshot: Any
) -> None:
    sha = keep(tmp_path / "store", b"")
    place = tmp_path / "store" / sha[:2] / sha
    place.unlink()
    os.mkfifo(place)  # who reads it waits
    snapshot = write_snapshot(tmp_path / "own.snapshot", [(sha, 0, 0)])
    child = start({"pixels": decoding(snapshot=snapshot, store=tmp_path / "store")})
    opened: list[int] = []

    def reading() -> bool:
        try:
            opened.append(os.open(place, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    child.until(reading)
    ended = child.stop(signal.SIGTERM)
    os.close(opened[0])
    assert ended.status == 143
    assert [line["event"] for line in ended.lines] == ["started"]
    assert "Traceback" not in ended.words


def run(stages: dict[str, dict[str, Any]], earlier: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """The stages as the child runs them, in this process."""
    orders = tuple(StageOrder(name, inputs) for name, inputs in stages.items())
    said: list[str] = []
    job = Job("t1", "pipeline", orders, earlier)
    done = run_stages(job, {name: find_stage(name, 1, preload=False) for name in STAGES}, said.append)
    return done, [json.loads(line) for line in said]


def test_an_unfit_network_ends_the_job_without_an_error(colours: Any, trained: Any, tmp_path: Path) -> None:
    train = {**trained.recipe, "run": str(tmp_path / "run"), "max_artifact_mb": 0.5}
    done, lines = run({"train": train, "evaluate": {}, "export": {}}, {"pixels": colours.pixels["good"]})
    assert done
    assert [(line["stage"], line["event"]) for line in lines] == [("train", "started"), ("train", "finished")]
    assert lines[-1]["outputs"]["stop"] == "unfit"


def test_a_training_that_cannot_be_done_is_one_line(colours: Any, trained: Any, tmp_path: Path) -> None:
    train = {**trained.recipe, "run": str(tmp_path / "run"), "architecture": "test_resnt"}
    done, lines = run({"train": train, "evaluate": {}}, {"pixels": colours.pixels["good"]})
    assert not done
    assert [line["event"] for line in lines] == ["started", "failed"]
    assert "test_resnet" in lines[-1]["error"]


def test_the_jobs_threads_are_the_stages_unless_it_says_otherwise(said: Any) -> None:
    stage = find_stage("evaluate", 2, preload=False)
    for inputs, threads in (({}, 2), ({"threads": 1}, 1)):
        with pytest.raises(StageError, match="needs the outputs of the stage train"):
            stage(inputs, {}, said)
        assert torch.get_num_threads() == threads
