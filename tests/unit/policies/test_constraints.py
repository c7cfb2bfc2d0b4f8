from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from policies.constraints import (
    accuracy_shortfalls,
    contradictions,
    in_doubt,
    infeasible_accuracy,
    nearest,
    rank,
    shortfalls,
    unmeasured,
)
from policies.facts import Candidate, ClassCount, Measurement, Requirement

MEASURED = Measurement(
    device="cpu",
    batch_size=1,
    concurrency=1,
    threads=1,
    method=1,
    latency_p50_ms=4.0,
    latency_p95_ms=5.0,
    latency_p99_ms=6.0,
    throughput=240.0,
    memory_mb=300.0,
    artifact_mb=44.8,
    repetitions=500,
)
ASKED = Requirement(target="edge", accelerator="cpu", height=224, width=224)
CANDIDATE = Candidate(
    artifact="aaa",
    model="m",
    architecture="resnet18",
    snapshot="s",
    classes=("a", "b"),
    artifact_mb=44.8,
    tune_accuracy=0.9,
    measurement=MEASURED,
)


def asked(**limits: Any) -> Requirement:
    return dataclasses.replace(ASKED, **limits)


def candidate(artifact: str = "aaa", measured: dict[str, float] | None = None, **change: Any) -> Candidate:
    measurement = dataclasses.replace(MEASURED, **(measured or {}))
    return dataclasses.replace(CANDIDATE, artifact=artifact, **{"measurement": measurement, **change})


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"artifact_max_mb": 20.0}, "artifact 44.8 MB is above artifact_max_mb 20.0 by 24.8"),
        ({"latency_p95_ms": 4.5}, "p95 latency 5 ms is above latency_p95_ms 4.5 by 0.5"),
        ({"throughput_min": 250.0}, "throughput 240.0 images/s is below throughput_min 250.0 by 10.0"),
        ({"memory_max_mb": 256.0}, "memory 300.0 MB is above memory_max_mb 256.0 by 44.0"),
    ],
)
def test_shortfalls_say_what_and_by_how_much(limits: dict[str, float], sentence: str) -> None:
    (shortfall,) = shortfalls(asked(**limits), CANDIDATE)
    assert shortfall.sentence == sentence
    assert (shortfall.constraint, shortfall.required) == next(iter(limits.items()))


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"artifact_max_mb": 44.8, "latency_p95_ms": 5.0, "throughput_min": 240.0, "memory_max_mb": 300.0},
        {"gpu_memory_max_mb": 100.0},  # not measured: no shortfall
        {"accuracy_min": 1.0},  # not a hard number
    ],
)
def test_no_shortfall(limits: dict[str, float]) -> None:
    assert shortfalls(asked(**limits), CANDIDATE) == ()


def test_gpu_memory() -> None:
    (shortfall,) = shortfalls(asked(gpu_memory_max_mb=500.0), candidate(measured={"gpu_memory_mb": 900.0}))
    assert shortfall.constraint == "gpu_memory_max_mb"


@pytest.mark.parametrize(
    ("limits", "measurement", "expected"),
    [
        ({}, None, ()),
        ({"artifact_max_mb": 1.0}, None, ()),
        ({"latency_p95_ms": 1.0, "memory_max_mb": 9.0}, None, ("latency_p95_ms", "memory_max_mb")),
        ({"latency_p95_ms": 1.0}, MEASURED, ()),
        ({"gpu_memory_max_mb": 1.0}, MEASURED, ("gpu_memory_max_mb",)),
    ],
)
def test_unmeasured(limits: dict[str, Any], measurement: Measurement | None, expected: tuple[str, ...]) -> None:
    assert unmeasured(asked(**limits), dataclasses.replace(CANDIDATE, measurement=measurement)) == expected


PROOF = (ClassCount("a", 50, 49), ClassCount("b", 50, 45))  # 94%


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, []),
        ({"accuracy_min": 0.94}, []),
        ({"accuracy_min": 0.95}, ["accuracy 94.00% (94 of 100) is below accuracy_min 0.95 by 1.0 points"]),
        ({"recall_min": {"a": 0.98}}, []),
        (
            {"recall_min": {"b": 0.98}},
            ["recall of class b 90.00% (45 of 50) is below recall_min.b 0.98 by 8.0 points"],
        ),
        ({"recall_min": {"c": 0.5}}, ["recall of class c is unknown, judge has no sample; recall_min.c 0.5"]),
    ],
)
def test_a_challenger_must_meet_accuracy_by_its_estimate(limits: dict[str, Any], expected: list[str]) -> None:
    assert [s.sentence for s in accuracy_shortfalls(asked(**limits), PROOF)] == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"accuracy_min": 0.95}, []),  # noise at the floor does not turn a champion out
        ({"accuracy_min": 0.97}, []),
        ({"accuracy_min": 0.98}, ["accuracy_min"]),
        ({"recall_min": {"b": 0.95}}, []),
        ({"recall_min": {"b": 0.98}}, ["recall_min.b"]),
        ({"recall_min": {"c": 0.98}}, []),  # no sample says nothing against it
    ],
)
def test_a_champion_is_infeasible_only_by_the_upper_bound(limits: dict[str, Any], expected: list[str]) -> None:
    found = infeasible_accuracy(asked(**limits), PROOF, 0.95)
    assert [s.constraint for s in found] == expected
    assert all("at most" in s.sentence and "95% confidence" in s.sentence for s in found)


POOL = [
    candidate("exact", {"latency_p95_ms": 9.0, "throughput": 100.0}, tune_accuracy=0.95, artifact_mb=80.0),
    candidate("quick", {"latency_p95_ms": 1.0, "throughput": 900.0}, tune_accuracy=0.90, artifact_mb=30.0),
    candidate("same", {"latency_p95_ms": 2.0, "throughput": 500.0}, tune_accuracy=0.95, artifact_mb=40.0),
    candidate("blank", measurement=None, tune_accuracy=None, artifact_mb=10.0),
]


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("accuracy", ["same", "exact", "quick", "blank"]),  # the tie by latency
        ("latency_p95_ms", ["quick", "same", "exact", "blank"]),
        ("throughput", ["quick", "same", "exact", "blank"]),
        ("artifact_mb", ["blank", "quick", "same", "exact"]),
        ("memory_mb", ["quick", "same", "exact", "blank"]),  # equal: by latency
    ],
)
def test_rank(prefer: str, expected: list[str]) -> None:
    for pool in (POOL, POOL[::-1]):
        assert [c.artifact for c in rank(pool, asked(prefer=prefer))] == expected


def test_nearest_is_the_one_that_misses_by_least() -> None:
    said = nearest(POOL, asked(latency_p95_ms=0.9))
    assert said == "quick (resnet18): p95 latency 1 ms is above latency_p95_ms 0.9 by 0.1"


def test_nearest_counts_accuracy_where_it_is_proven() -> None:
    pool = [candidate("big", artifact_mb=60.0), candidate("poor", artifact_mb=10.0, proof=PROOF)]
    said = nearest(pool, asked(artifact_max_mb=20.0, accuracy_min=0.99))
    assert said is not None and said.startswith("poor (resnet18): accuracy 94.00%")


def test_nearest_of_none() -> None:
    assert nearest([], ASKED) is None
    assert nearest(POOL, ASKED) is None


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"accuracy_min": 95.0}, "require.accuracy_min is 95: it must lie from 0 to 1 (for 95% write 0.95)"),
        ({"accuracy_min": -0.1}, "require.accuracy_min is -0.1"),
        ({"accuracy_min": float("nan")}, "require.accuracy_min is nan"),
        ({"recall_min": {"scratch": 1.5}}, "require.recall_min.scratch is 1.5"),
        ({"batch_size": 0}, "require.batch_size is 0: it must be at least 1"),
        ({"concurrency": -1}, "require.concurrency is -1"),
        ({"height": 0}, "input.height is 0"),
        ({"latency_p95_ms": 0.0}, "require.latency_p95_ms is 0"),
        ({"throughput_min": -3.0}, "require.throughput_min is -3"),
        ({"memory_max_mb": float("inf")}, "require.memory_max_mb is inf"),
        ({"gpu_memory_max_mb": float("nan"), "accelerator": "cuda"}, "require.gpu_memory_max_mb is nan"),
        ({"gpu_memory_max_mb": 100.0}, "require.gpu_memory_max_mb is 100: memory of a GPU is not measured"),
        ({"artifact_max_mb": -1.0}, "require.artifact_max_mb is -1"),
    ],
)
def test_contradictions_open_with_the_key(limits: dict[str, Any], key: str) -> None:
    (sentence,) = contradictions(asked(**limits))
    assert sentence.startswith(key)


def test_several_contradictions_are_all_told() -> None:
    assert len(contradictions(asked(batch_size=0, accuracy_min=2.0, artifact_max_mb=-1.0))) == 3


def test_values_that_can_hold() -> None:
    full = asked(latency_p95_ms=0.1, throughput_min=1e6, memory_max_mb=1.0, accuracy_min=1.0, recall_min={"a": 0.0})
    assert contradictions(full) == () == contradictions(ASKED)


# --- what a measurement cannot tell ---------------------------------------------------------------------------------

# Timed while the reference network ran 1.25 times slower than on a quiet machine, its p95 twice.
TIMED = {"latency_p50_ms": 4.0, "latency_p95_ms": 10.0, "latency_p99_ms": 11.0, "throughput": 192.0}
BUSY = dataclasses.replace(
    MEASURED,
    raw=TIMED,
    clear=TIMED,
    reference={"latency_p50_ms": 0.2, "latency_p95_ms": 0.3, "latency_p99_ms": 0.5, "throughput": 8000.0},
    uncertainty={"latency_p95_ms": 0.1, "throughput": 0.1, "memory_mb": 0.02},
).corrected({"latency_p50_ms": 0.1, "throughput": 10000.0})


def test_figures_are_held_against_constraints_as_on_a_quiet_machine() -> None:
    busy = dataclasses.replace(CANDIDATE, measurement=BUSY)
    assert shortfalls(asked(latency_p95_ms=5.0, throughput_min=240.0), busy) == ()
    (shortfall,) = shortfalls(asked(throughput_min=300.0), busy)
    assert shortfall.sentence == (
        "throughput 240.0 images/s is below throughput_min 300.0 by 60.0 "
        "(timed as 192.0, moments included in which it was disturbed, "
        "by which a reference network ran 1.25 times slower)"
    )


NARROW = dataclasses.replace(MEASURED, uncertainty={"latency_p95_ms": 0.1, "memory_mb": 0.02})


@pytest.mark.parametrize(
    ("limits", "doubted"),
    [
        ({"latency_p95_ms": 4.4}, []),
        ({"latency_p95_ms": 4.6}, ["latency_p95_ms"]),
        ({"latency_p95_ms": 5.4}, ["latency_p95_ms"]),
        ({"latency_p95_ms": 5.6}, []),
        ({"memory_max_mb": 303.0, "latency_p95_ms": 5.0}, ["latency_p95_ms", "memory_max_mb"]),
        ({"throughput_min": 240.0}, []),  # nothing is known of its uncertainty
        ({}, []),
    ],
)
def test_constraints_that_the_uncertainty_leaves_open(limits: dict[str, float], doubted: list[str]) -> None:
    assert list(in_doubt(asked(**limits), dataclasses.replace(CANDIDATE, measurement=NARROW))) == doubted


def test_a_doubt_is_told_whichever_way_the_estimate_falls() -> None:
    narrow = dataclasses.replace(CANDIDATE, measurement=NARROW)
    (shortfall,) = shortfalls(asked(latency_p95_ms=4.8), narrow)
    assert shortfall.sentence == (
        "p95 latency 5 ms is above latency_p95_ms 4.8 by 0.2, within the uncertainty of the measurement (4.5 to 5.5)"
    )
    assert in_doubt(asked(latency_p95_ms=5.2), narrow) == {
        "latency_p95_ms": "p95 latency 5 ms is between 4.5 and 5.5, latency_p95_ms 5.2"
    }


@pytest.mark.parametrize(("limit", "doubted"), [(4.4, False), (5.0, True), (10.5, True), (11.5, False)])
def test_a_correction_that_is_not_believed_leaves_all_open_up_to_what_was_timed(limit: float, doubted: bool) -> None:
    """The reference's median was twice as long: the p95 of 5 ms may be 10 as well, with a tenth more on either side."""
    assert not BUSY.is_believed("latency_p95_ms")
    busy = dataclasses.replace(CANDIDATE, measurement=BUSY)
    assert bool(in_doubt(asked(latency_p95_ms=limit), busy)) is doubted


def test_nothing_is_in_doubt_that_was_not_measured() -> None:
    assert in_doubt(asked(latency_p95_ms=5.0), dataclasses.replace(CANDIDATE, measurement=None)) == {}
