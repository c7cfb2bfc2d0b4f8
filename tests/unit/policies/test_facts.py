"""The facts go through JSON and come back as they were, also where another version wrote them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from policies.evidence import Evidence
from policies.facts import (
    Candidate,
    ClassCount,
    ClassTally,
    Measurement,
    Requirement,
    Shortfall,
    Verdict,
    from_dict,
    to_dict,
)
from policies.settings import PoliciesSettings, PromotionSettings, RetrySettings

MEASURED = Measurement("cpu, 2 cores", 1, 2, 1, 1, 1.0, 2.0, 3.0, 500.0, 100.0, 9.5, 1000, None)
FACTS: list[Any] = [
    Requirement("edge", "cpu", 32, 48, latency_p95_ms=5.0, recall_min={"a b": 0.9}, prefer="throughput"),
    MEASURED,
    dataclasses.replace(MEASURED, gpu_memory_mb=12.0),
    Candidate("a", "m", "net", "s", ("x", "y"), 9.5, None, MEASURED, (ClassCount("x", 3, 2),)),
    Candidate("a", "m", "net", "s", ("x",), 9.5, 0.5, None),
    ClassTally("x", 1, 2, 3, 4),
    Verdict("keep", "why", False, False, (Shortfall("artifact_max_mb", 1.0, 2.0, "too large"),), ({"class": "x"},)),
    Evidence(5.0, "edge", True, ("x",), {"x": 3}, judge=(ClassCount("x", 3, 2),), feasible=False, requested="ann"),
    PoliciesSettings(retry=RetrySettings(attempts=9)),
    PromotionSettings(margin=0.5),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_a_fact_comes_back_as_it_was(fact: Any) -> None:
    plain = json.loads(json.dumps(to_dict(fact)))
    assert from_dict(type(fact), plain) == fact


def test_what_only_a_newer_version_knows_is_passed_over() -> None:
    plain = {**to_dict(ClassCount("x", 3, 2)), "weight": 0.5}
    assert from_dict(ClassCount, plain) == ClassCount("x", 3, 2)


def test_what_an_older_version_did_not_write_takes_its_default() -> None:
    plain = to_dict(Evidence(5.0, "edge", failures=2))
    del plain["failures"], plain["constraints_changed_at"]
    assert from_dict(Evidence, plain) == Evidence(5.0, "edge")


def test_a_field_without_a_default_may_not_be_missing() -> None:
    with pytest.raises(TypeError, match="correct"):
        from_dict(ClassCount, {"name": "x", "samples": 3})


def test_nested_facts_become_facts_again() -> None:
    found = from_dict(Candidate, to_dict(FACTS[3]))
    assert isinstance(found.measurement, Measurement)
    assert found.proof == (ClassCount("x", 3, 2),)
    assert found.classes == ("x", "y")


def test_plain_values_hold_no_tuple_and_no_class() -> None:
    plain = to_dict(FACTS[6])
    assert plain["shortfalls"] == [
        {"constraint": "artifact_max_mb", "required": 1.0, "found": 2.0, "sentence": "too large"}
    ]
    assert plain["table"] == [{"class": "x"}]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_facts_are_frozen(fact: Any) -> None:
    name = dataclasses.fields(fact)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(fact, name, None)


def test_a_tally_counts_all_four_cells() -> None:
    assert ClassTally("x", 1, 2, 3, 4).samples == 10


# --- measurements, corrected ----------------------------------------------------------------------------------------

SPEEDS = {"latency_p50_ms": 1.0, "latency_p95_ms": 2.0, "latency_p99_ms": 3.0, "throughput": 500.0}
TIMED = dataclasses.replace(
    MEASURED,
    raw={**SPEEDS, "latency_p95_ms": 9.0},
    clear=SPEEDS,
    reference={"latency_p50_ms": 0.1, "latency_p95_ms": 0.2, "latency_p99_ms": 0.3, "throughput": 8000.0},
)


def test_what_has_no_reference_is_not_corrected() -> None:
    assert MEASURED.corrected({"latency_p50_ms": 0.05}) is MEASURED
    assert MEASURED.slowdown("latency_p50_ms") == 1.0


def test_latencies_are_corrected_by_the_median_and_throughput_by_throughput() -> None:
    found = TIMED.corrected({"latency_p50_ms": 0.08, "latency_p95_ms": 0.1, "throughput": 12500.0})
    assert found.latency_p50_ms == pytest.approx(0.8)
    assert found.latency_p95_ms == pytest.approx(1.6)  # whatever its p95 was: that depends on how long a call is
    assert found.latency_p99_ms == pytest.approx(2.4)
    assert found.throughput == pytest.approx(781.25)
    assert (found.raw, found.clear) == (TIMED.raw, SPEEDS)
    slower = [found.slowdown(name) for name in ("latency_p50_ms", "latency_p99_ms", "throughput", "memory_mb")]
    assert slower == pytest.approx([1.25, 1.25, 1.5625, 1.0])
    assert found.steady


def test_a_reference_that_was_never_faster_corrects_nothing() -> None:
    found = TIMED.corrected({"latency_p50_ms": 0.2, "throughput": 1000.0})
    assert {name: getattr(found, name) for name in SPEEDS} == pytest.approx(SPEEDS)


def test_it_is_corrected_from_what_was_timed_however_often() -> None:
    once = TIMED.corrected({"latency_p50_ms": 0.08})
    assert once.corrected({"latency_p50_ms": 0.08}) == once


def test_a_correction_beyond_the_bound_is_not_believed() -> None:
    found = TIMED.corrected({"latency_p50_ms": 0.05})
    assert not found.steady
    assert found.interval("latency_p50_ms") == (0.5, 1.0)  # as corrected, or as timed
    assert found.interval("latency_p95_ms") == (1.0, 9.0)
    assert found.interval("throughput") == (500.0, 500.0)


def test_an_interval_is_never_below_nothing() -> None:
    wide = dataclasses.replace(TIMED, uncertainty={"latency_p50_ms": 1.5})
    assert wide.interval("latency_p50_ms") == (0.0, 2.5)
