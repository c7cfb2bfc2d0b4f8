"""A measurement counts for its load and device alone, and as this machine would have been when nothing disturbed it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import measurements, schema
from daemon.journal import add
from daemon.measurements import undisturbed
from policies.facts import METHOD, Measurement

World = Any  # tests/unit/daemon/conftest.py
HERE = "this machine"


def reference(slower: float) -> dict[str, Any]:
    """What a measurement says of the reference network that ran so many times slower than at its best."""
    figures = {"latency_p50_ms": 0.1, "latency_p95_ms": 0.2, "latency_p99_ms": 0.3, "throughput": 8000.0}
    ran = {name: value / slower if name == "throughput" else value * slower for name, value in figures.items()}
    timed = {"latency_p50_ms": 2.0, "latency_p95_ms": 4.0, "latency_p99_ms": 6.0, "throughput": 400.0}
    return {**timed, "raw": timed, "clear": timed, "reference": ran, "reference_device": HERE}


def newest(journal: Engine, world: World) -> Measurement | None:
    with journal.connect() as connection:
        best = measurements.quiet(connection, HERE, 1)
        return measurements.newest(connection, "a", world.requirement(), world.devices["onnxruntime"], best)


@pytest.mark.parametrize(
    ("figures", "found"),
    [
        ({}, True),
        ({"batch_size": 2}, False),
        ({"concurrency": 2}, False),
        ({"device": "another machine"}, False),
        ({"method": METHOD - 1}, False),
    ],
)
def test_a_measurement_counts_under_the_load_and_on_the_device_alone(
    journal: Engine, world: World, figures: dict[str, Any], found: bool
) -> None:
    world.artifact("a", world.cycle())
    world.measure("a", **figures)
    assert (newest(journal, world) is not None) is found


def test_the_newest_measurement_counts(journal: Engine, world: World) -> None:
    world.artifact("a", world.cycle())
    world.measure("a", latency_p95_ms=9.0)
    world.measure("a", latency_p95_ms=1.0)
    world.measure("a", latency_p95_ms=5.0, batch_size=8)
    found = newest(journal, world)
    assert found is not None
    assert found.latency_p95_ms == 1.0


def test_a_busy_hour_is_corrected_once_a_quiet_one_was_seen(journal: Engine, world: World) -> None:
    world.artifact("a", world.cycle())
    world.artifact("b", world.cycle())
    world.measure("a", **reference(1.25))
    found = newest(journal, world)
    assert found is not None
    assert (found.latency_p50_ms, found.slowdown("latency_p50_ms")) == (2.0, 1.0)
    world.measure("b", **reference(1.0))
    found = newest(journal, world)
    assert found is not None
    assert [found.latency_p50_ms, found.latency_p95_ms, found.latency_p99_ms] == pytest.approx([1.6, 3.2, 4.8])
    assert found.throughput == pytest.approx(500.0)
    assert found.raw["latency_p50_ms"] == 2.0


@pytest.mark.parametrize("other", [{"concurrency": 2}, {"reference_device": "another"}, {"method": METHOD - 1}])
def test_how_fast_the_reference_is_elsewhere_corrects_nothing(
    journal: Engine, world: World, other: dict[str, Any]
) -> None:
    world.artifact("a", world.cycle())
    world.measure("a", **{**reference(1.0), **other})
    world.measure("a", **reference(1.25))
    found = newest(journal, world)
    assert found is not None
    assert found.latency_p50_ms == 2.0


def test_benchmarks_tell_how_fast_the_reference_is_too(journal: Engine, world: World) -> None:
    world.artifact("a", world.cycle())
    world.measure("a", **reference(1.25))
    size = {"height": 32, "width": 32, "classes": 2, "batch_size": 1, "concurrency": 1}
    figures = {**reference(1.0), "concurrency": 1, "method": METHOD}
    with journal.begin() as connection:
        about = {"architecture": "net", "variant": "onnxruntime:fp32", "device": HERE, **size}
        add(connection, schema.benchmarks, **about, figures=figures, error=None, at=1.0)
    found = newest(journal, world)
    assert found is not None
    assert found.latency_p50_ms == pytest.approx(1.6)


def test_a_machine_that_became_slower_for_good_is_not_held_to_its_past(
    journal: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "NEWEST", 2)
    world.artifact("a", world.cycle())
    world.measure("a", **reference(1.0))
    world.measure("a", **reference(1.25))
    world.measure("a", **reference(1.25))
    found = newest(journal, world)
    assert found is not None
    assert found.latency_p50_ms == pytest.approx(2.0)


def test_the_luckiest_of_many_readings_is_not_what_all_are_corrected_to() -> None:
    """An eighth are at least as fast; of few it is the fastest."""
    many = [{"latency_p50_ms": 1.0 + number / 100, "throughput": 100.0 - number} for number in range(40)]
    assert undisturbed(many) == {"latency_p50_ms": 1.05, "throughput": 95.0}
    assert undisturbed(many[:3]) == {"latency_p50_ms": 1.0, "throughput": 100.0}
    assert undisturbed([]) == {}
