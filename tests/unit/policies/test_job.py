"""The one protocol of both packages' children: what is said of each stage, and what a stage is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from policies.facts import Job, StageOrder, from_dict, to_dict
from policies.job import Outputs, Report, Stage, StageError, run_stages

Seen = list[tuple[Mapping[str, Any], dict[str, Any]]]


def stage(outputs: Outputs, seen: Seen | None = None) -> Stage:
    def run(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
        if seen is not None:
            seen.append((inputs, {name: dict(said) for name, said in earlier.items()}))
        return outputs

    return run


def refuse(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    raise StageError("the disk is full")


def stumble(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
    raise ZeroDivisionError


def run(stages: dict[str, Stage], **job: Any) -> tuple[bool, list[dict[str, Any]]]:
    orders = tuple(StageOrder(name, {"number": number}) for number, name in enumerate(stages))
    said: list[str] = []
    well = run_stages(Job("t1", "pipeline", orders, **job), stages, said.append)
    assert not any("\n" in line for line in said)
    return well, [json.loads(line) for line in said]


def events(said: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["stage"], line["event"]) for line in said]


def test_each_stage_is_said_to_start_and_to_finish_with_its_outputs() -> None:
    well, said = run({"train": stage({"run": "/r"}), "export": stage({})})
    assert well
    assert said == [
        {"token": "t1", "stage": "train", "event": "started"},
        {"token": "t1", "stage": "train", "event": "finished", "outputs": {"run": "/r"}},
        {"token": "t1", "stage": "export", "event": "started"},
        {"token": "t1", "stage": "export", "event": "finished", "outputs": {}},
    ]


def test_a_stage_gets_its_inputs_and_the_outputs_of_all_before_it() -> None:
    seen: Seen = []
    run({"train": stage({"a": 1}, seen), "export": stage({}, seen)}, earlier={"pixels": {"p": 2}})
    assert seen == [
        ({"number": 0}, {"pixels": {"p": 2}}),
        ({"number": 1}, {"pixels": {"p": 2}, "train": {"a": 1}}),
    ]


def test_progress_is_said_of_the_stage_that_reports_it() -> None:
    def slow(inputs: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], report: Report) -> Outputs:
        report(inputs["number"], 8, "epoch", loss=0.5)
        return {}

    _, said = run({"train": slow, "evaluate": slow})
    progress = [line for line in said if line["event"] == "progress"]
    told = {"token": "t1", "event": "progress", "total": 8, "unit": "epoch", "loss": 0.5}
    assert progress == [{**told, "stage": "train", "done": 0}, {**told, "stage": "evaluate", "done": 1}]


def test_a_stage_that_cannot_ends_the_job_with_its_reason() -> None:
    well, said = run({"train": refuse, "export": stage({})})
    assert not well
    assert said[1:] == [{"token": "t1", "stage": "train", "event": "failed", "error": "the disk is full"}]


def test_a_bug_is_left_to_the_caller() -> None:
    said: list[str] = []
    with pytest.raises(ZeroDivisionError):
        run_stages(Job("t1", "deploy", (StageOrder("build", {}),)), {"build": stumble}, said.append)
    assert events([json.loads(line) for line in said]) == [("build", "started")]


def test_a_stage_that_says_stop_ends_the_job_well() -> None:
    well, said = run({"train": stage({"stop": "unfit"}), "export": stage({})})
    assert well
    assert events(said) == [("train", "started"), ("train", "finished")]


def test_what_a_stage_is_told_of_earlier_ones_is_its_own_copy() -> None:
    def greedy(inputs: Mapping[str, Any], earlier: Any, report: Report) -> Outputs:
        earlier["pixels"]["p"] = "changed"
        return {}

    given = {"pixels": {"p": 2}}
    run({"train": greedy}, earlier=given)
    assert given == {"pixels": {"p": 2}}


def test_a_job_goes_through_its_file_unchanged() -> None:
    job = Job("t1", "deploy", (StageOrder("build", {"model": "/m", "tune": None}),), {"pixels": {"p": 2}}, threads=3)
    assert from_dict(Job, json.loads(json.dumps(to_dict(job)))) == job
