"""The search for an architecture: what is dropped, who races, who wins, step by step."""

from __future__ import annotations

import dataclasses

import pytest

from policies.facts import Measurement, Requirement
from policies.search import Found, Heat, SearchFacts, Sketched, as_candidates, next_search, rejected
from policies.steps import Race, Shortlist, Sketch

ASKED = Requirement("edge", "cpu", 32, 32, latency_p95_ms=5.0, artifact_max_mb=20.0)
FP32, INT8 = "onnxruntime:fp32", "onnxruntime:int8"
NONE: frozenset[str] = frozenset()
FITS = Measurement(
    device="cpu", batch_size=1, concurrency=1, threads=1, method=1, latency_p50_ms=1.0, latency_p95_ms=2.0,
    latency_p99_ms=3.0, throughput=500.0, memory_mb=100.0, artifact_mb=10.0, repetitions=100,
)  # fmt: skip
SLOW = dataclasses.replace(FITS, latency_p95_ms=9.0)
BIG = dataclasses.replace(FITS, artifact_mb=44.8)


def search(names: str = "abcdefgh", epochs: int = 9, **known: object) -> SearchFacts:
    """Eight architectures that can all fit, unless something else is said."""
    sketches = {name: {FP32: Sketched(FITS)} for name in names}
    plain = SearchFacts(("*",), tuple(names), sketches, first_epochs=1, reduction=3.0, epochs=epochs)
    return dataclasses.replace(plain, **known)  # type: ignore[arg-type]


def step(facts: SearchFacts, variants: tuple[str, ...] = (FP32,), known: frozenset[str] = NONE) -> object:
    return next_search(facts, ASKED, variants, known)


def test_timm_is_asked_first_what_the_patterns_name() -> None:
    asked = step(SearchFacts(("resnet*", "vit_tiny")))
    assert isinstance(asked, Shortlist)
    assert "resnet*, vit_tiny of timm are searched" in asked.reason


def test_every_architecture_is_measured_untrained_in_turn() -> None:
    facts = SearchFacts(("*",), ("a", "b"))
    assert step(facts) == Sketch("a", FP32)
    facts = dataclasses.replace(facts, sketches={"a": {FP32: Sketched(FITS)}})
    assert step(facts) == Sketch("b", FP32)


def test_another_precision_is_measured_where_the_first_does_not_fit_alone() -> None:
    facts = search("ab", sketches={"a": {FP32: Sketched(FITS)}, "b": {FP32: Sketched(SLOW)}})
    assert step(facts, (FP32, INT8)) == Sketch("b", INT8)


def test_what_is_known_already_is_no_part_of_it() -> None:
    facts = SearchFacts(("*",), ("a", "b"))
    assert step(facts, known=frozenset({"a"})) == Sketch("b", FP32)


def test_each_that_cannot_fit_is_dropped_with_its_constraint_and_by_how_much() -> None:
    broken = Sketched(None, "it cannot take images of 32 x 32 pixels")
    both = {FP32: Sketched(SLOW), INT8: Sketched(BIG)}
    facts = search("abc", sketches={"a": {FP32: Sketched(SLOW)}, "b": {FP32: broken}, "c": both})
    assert rejected(facts, ASKED) == {
        "a": "p95 latency 9 ms is above latency_p95_ms 5 by 4",
        "b": "it cannot take images of 32 x 32 pixels",
        "c": "onnxruntime:fp32: p95 latency 9 ms is above latency_p95_ms 5 by 4, "
        "onnxruntime:int8: artifact 44.8 MB is above artifact_max_mb 20.0 by 24.8",
    }
    over = step(facts)
    assert isinstance(over, Found)
    assert (over.winner, over.reason[:46]) == (None, "0 of 3 architectures can meet the constraints;")
    assert "a cannot: p95 latency 9 ms" in over.reason


def test_one_that_fits_alone_wins_without_a_race() -> None:
    over = step(search("ab", sketches={"a": {FP32: Sketched(FITS)}, "b": {FP32: Sketched(SLOW)}}))
    assert isinstance(over, Found)
    assert over.winner == "a"


def walk(facts: SearchFacts, accuracy: dict[str, float | None]) -> tuple[Found, list[tuple[str, int]]]:
    """Runs each heat as it is asked for, to the end."""
    run: list[tuple[str, int]] = []
    while not isinstance(now := step(facts), Found):
        assert isinstance(now, Race)
        run.append((now.architecture, now.epochs))
        heat = Heat(now.epochs, accuracy[now.architecture], error="the loss is nan")
        heats = (*facts.heats.get(now.architecture, ()), heat)
        facts = dataclasses.replace(facts, heats={**facts.heats, now.architecture: heats})
    return now, run


def test_the_better_third_of_each_rung_goes_on_for_three_times_the_epochs() -> None:
    scores = {name: 0.1 * place for place, name in enumerate("abcdefgh")}
    over, run = walk(search(), scores)  # type: ignore[arg-type]
    assert over.winner == "h"
    assert run == [*((name, 1) for name in "abcdefgh"), ("h", 3), ("g", 3), ("f", 3)]
    assert over.reason.startswith("h wins the search: after 3 epochs: h 70.0%, g 60.0%, f 50.0%; 1 of 3 go on")


def test_one_that_drops_out_runs_no_further_heat_and_never_wins() -> None:
    scores = {name: None if name in "fgh" else 0.1 * place for place, name in enumerate("abcdefgh")}
    over, run = walk(search(), scores)
    assert over.winner == "e"
    assert [name for name, epochs in run if epochs == 3] == ["e", "d", "c"]
    over, _ = walk(search("ab"), {"a": None, "b": None})
    assert over.winner is None
    assert "dropped out (the loss is nan)" in over.reason


@pytest.mark.parametrize("reduction", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("epochs", [1, 2, 7, 20])
def test_every_search_comes_to_its_end(reduction: float, epochs: int) -> None:
    names = [f"n{number}" for number in range(11)]
    facts = SearchFacts(
        ("*",), tuple(names), {name: {FP32: Sketched(FITS)} for name in names}, reduction=reduction, epochs=epochs
    )
    over, run = walk(facts, {name: number / 20 for number, name in enumerate(names)})
    assert over.winner == "n10"
    assert max(ran for _, ran in run) <= epochs
    assert len(run) == len(set(run))


def test_of_equally_accurate_ones_the_lower_loss_wins() -> None:
    heats = {"a": (Heat(1, 0.5, 1.2),), "b": (Heat(1, 0.5, 1.1),)}
    over = step(search("ab", heats=heats))
    assert isinstance(over, Found)
    assert over.winner == "b"


def test_what_was_measured_is_compared_like_any_candidate() -> None:
    found = as_candidates(search("ab", sketches={"a": {FP32: Sketched(SLOW)}, "b": {FP32: Sketched(None, "no")}}))
    assert [(c.architecture, c.variant, c.measurement) for c in found] == [("a", FP32, SLOW)]
