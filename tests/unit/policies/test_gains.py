"""What a challenger brings: new classes that pass their floor, and more of what is preferred than noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from policies.facts import Candidate, ClassCount, ClassTally, Measurement, Requirement
from policies.gains import FEW, NOISE, Gains, NewClass, figure, new_classes, on_newest, weigh

ASKED = Requirement("edge", "cpu", 32, 32)
MEASURED = Measurement("cpu", 1, 1, 1, 1, 10.0, 10.0, 10.0, 100.0, 100.0, 10.0, 100)
OLD = Candidate("old", "old", "net", "s", ("a", "b"), 10.0, 0.9, MEASURED)
EVEN = ClassTally("all", 80, 5, 5, 10)


def candidate(**change: Any) -> Candidate:
    measured = {name: change.pop(name) for name in ("latency_p95_ms", "throughput", "memory_mb") if name in change}
    return dataclasses.replace(OLD, measurement=dataclasses.replace(MEASURED, **measured), artifact="new", **change)


@pytest.mark.parametrize(
    ("samples", "correct", "told", "passed"),
    [
        (0, 0, False, False),
        (FEW - 1, FEW - 1, False, False),  # all right, and too few to tell
        (FEW, FEW, True, True),
        (10, 5, True, True),  # at the floor
        (10, 4, True, False),
    ],
)
def test_a_new_class_passes_its_floor(samples: int, correct: int, told: bool, passed: bool) -> None:
    new = NewClass("c", samples, correct, 0.5)
    assert (new.told, new.passed) == (told, passed)
    assert (new.row()["samples"], new.row()["challenger_correct"], new.row()["new"]) == (samples, correct, True)


def test_new_classes_are_those_that_the_challenger_alone_knows() -> None:
    challenger = candidate(classes=("b", "d", "a", "c"), proof=(ClassCount("c", 4, 3), ClassCount("a", 9, 9)))
    assert new_classes(challenger, OLD, 0.5) == (NewClass("d", 0, 0, 0.5), NewClass("c", 4, 3, 0.5))
    assert [new.name for new in new_classes(challenger, None, 0.5)] == ["b", "d", "a", "c"]
    assert new_classes(OLD, OLD, 0.5) == ()


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    # preferred, the challenger's figures beside 10 ms, 100 images/s, 100 MB of memory and 10 MB, gained, given up
    ("latency_p95_ms", {"latency_p95_ms": 9.0}, "latency_p95_ms 9 ms instead of 10", ""),
    ("latency_p95_ms", {"latency_p95_ms": 9.6}, "", ""),
    ("latency_p95_ms", {"latency_p95_ms": 10.4}, "", ""),
    ("latency_p95_ms", {"latency_p95_ms": 12.0}, "", "latency_p95_ms 12 ms instead of 10"),
    ("throughput", {"throughput": 120.0}, "throughput 120 images/s instead of 100", ""),
    ("throughput", {"throughput": 104.0}, "", ""),
    ("throughput", {"throughput": 80.0}, "", "throughput 80 images/s instead of 100"),
    ("memory_mb", {"memory_mb": 90.0}, "memory_mb 90 MB instead of 100", ""),
    ("artifact_mb", {"artifact_mb": 9.8}, "artifact_mb 9.8 MB instead of 10", ""),
    ("artifact_mb", {"artifact_mb": 9.95}, "", ""),
    ("latency_p95_ms", {"memory_mb": 1.0, "artifact_mb": 1.0}, "", ""),  # nobody prefers them
]


@pytest.mark.parametrize(("prefer", "change", "gained", "given_up"), CASES)
def test_what_is_preferred_must_differ_by_more_than_noise(
    prefer: Any, change: dict[str, Any], gained: str, given_up: str
) -> None:
    found = weigh(dataclasses.replace(ASKED, prefer=prefer), candidate(**change), OLD, EVEN, ())
    assert (found.preferred, found.given_up, bool(found)) == (gained, given_up, bool(gained))


def test_what_one_brings_the_other_gives_up() -> None:
    """So that no two replace each other in turn."""
    for prefer, change, *_ in CASES:
        asked = dataclasses.replace(ASKED, prefer=prefer)
        there, back = (
            weigh(asked, *pair, EVEN, ()) for pair in ((candidate(**change), OLD), (OLD, candidate(**change)))
        )
        assert bool(there.preferred) == bool(back.given_up)
        assert not (there.preferred and back.preferred)


@pytest.mark.parametrize(
    ("prefer", "better", "mine", "theirs", "beaten"),
    [
        ("latency_p95_ms", 9.0, 0.05, 0.05, True),  # 1 ahead, 0.67 unsure
        ("latency_p95_ms", 9.0, 0.13, 0.13, False),  # 1.75 unsure
        ("latency_p95_ms", 9.0, 0.0, 0.13, False),  # one that is sure of itself does not make up for the other
        ("latency_p95_ms", 9.0, 0.13, 0.0, False),
        ("latency_p95_ms", 8.0, 0.13, 0.13, True),  # 2 ahead, 1.67 unsure, though the intervals overlap
        ("latency_p95_ms", 9.6, 0.001, 0.001, False),  # sure, and within what two measurements were seen to differ by
        ("throughput", 115.0, 0.13, 0.13, False),
        ("throughput", 125.0, 0.13, 0.13, True),
    ],
)
def test_a_difference_within_what_both_are_unsure_of_is_no_gain(
    prefer: Any, better: float, mine: float, theirs: float, beaten: bool
) -> None:
    """Two equal models do not replace each other on noise at each training."""
    one, other = (
        dataclasses.replace(each, measurement=dataclasses.replace(each.measurement, uncertainty={prefer: share}))
        for each, share in ((candidate(**{prefer: better}), mine), (OLD, theirs))
    )
    asked = dataclasses.replace(ASKED, prefer=prefer)
    assert bool(weigh(asked, one, other, EVEN, ()).preferred) is beaten
    assert bool(weigh(asked, other, one, EVEN, ()).given_up) is beaten


def test_a_correction_that_is_not_believed_makes_no_gain() -> None:
    """Corrected it is 9 ms, and may as well be the 18 that were timed."""
    timed = {"latency_p50_ms": 18.0, "latency_p95_ms": 18.0, "latency_p99_ms": 18.0, "throughput": 50.0}
    ran = {"latency_p50_ms": 0.2, "throughput": 5000.0}
    slow = dataclasses.replace(MEASURED, raw=timed, clear=timed, reference=ran)
    busy = dataclasses.replace(candidate(), measurement=slow.corrected({"latency_p50_ms": 0.1, "throughput": 10_000.0}))
    assert busy.measurement is not None
    assert busy.measurement.latency_p95_ms == 9.0
    asked = dataclasses.replace(ASKED, prefer="latency_p95_ms")
    assert not weigh(asked, busy, OLD, EVEN, ())


@pytest.mark.parametrize("prefer", sorted(NOISE.keys() - {"artifact_mb"}))
def test_what_was_not_measured_is_no_gain(prefer: Any) -> None:
    blank = dataclasses.replace(OLD, measurement=None)
    asked = dataclasses.replace(ASKED, prefer=prefer)
    for pair in ((blank, OLD), (OLD, blank)):
        found = weigh(asked, *pair, EVEN, ())
        assert (found.preferred, found.given_up) == ("", "")


@pytest.mark.parametrize(
    ("won", "lost", "told"),
    [
        (9, 3, "6.0 points more accuracy on the 100 judge samples that came since the champion was trained (won 9"),
        (6, 3, ""),  # as two equal models come out one time in four
        (3, 9, ""),
        (0, 0, ""),
    ],
)
def test_more_on_the_newest_images_is_a_gain(won: int, lost: int, told: str) -> None:
    found = on_newest(ClassTally("all", 100 - won - lost, lost, won, 0))
    assert found == (f"{told}, lost {lost})" if told else "")
    assert bool(Gains(newest=found)) is bool(told)


@pytest.mark.parametrize(
    ("won", "lost", "tune", "gained"),
    [
        (6, 5, 0.0, "1.0 points more accuracy by the estimate"),
        (5, 6, 1.0, ""),  # tune breaks ties alone
        (5, 5, 0.95, "more accuracy on tune (95.00% instead of 90.00%, equal on judge)"),
        (5, 5, 0.9, ""),
        (5, 5, None, ""),
    ],
)
def test_accuracy_is_that_on_judge_and_tune_breaks_the_tie(
    won: int, lost: int, tune: float | None, gained: str
) -> None:
    tally = ClassTally("all", 80, lost, won, 100 - 80 - won - lost)
    assert weigh(ASKED, candidate(tune_accuracy=tune), OLD, tally, ()).preferred == gained


def test_a_new_class_counts_beside_what_is_preferred_where_it_passed() -> None:
    learned, poor = NewClass("c", 10, 9, 0.5), NewClass("d", 10, 1, 0.5)
    both = weigh(ASKED, candidate(tune_accuracy=0.95), OLD, EVEN, (learned, poor))
    assert both.classes == (learned,)
    assert str(both).startswith("the new class c (9 of 10 right) and more accuracy on tune")
    assert not weigh(ASKED, candidate(), OLD, EVEN, (poor,))
    two = weigh(ASKED, candidate(), OLD, EVEN, (learned, dataclasses.replace(learned, name="e")))
    assert str(two) == "the new classes c (9 of 10 right), e (9 of 10 right)"


@pytest.mark.parametrize(
    ("value", "said"), [(0.012345, "0.0123"), (9.999, "10"), (99.94, "99.9"), (100.0, "100"), (12345.6, "12,346")]
)
def test_figures_have_three_digits_that_count(value: float, said: str) -> None:
    assert figure(value) == said
