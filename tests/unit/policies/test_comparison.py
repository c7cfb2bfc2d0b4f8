"""A challenger compared in pairs, within an error budget that all askings of a period share."""

from __future__ import annotations

import math

import pytest

from policies.comparison import compare
from policies.facts import ClassTally
from policies.statistics import mcnemar, paired_lower_bound


def tally(samples: int, won: int, lost: int, name: str = "a") -> ClassTally:
    return ClassTally(name, samples - won - lost, lost, won, 0)


def test_the_classes_are_compared_together() -> None:
    found = compare([tally(100, 9, 1), tally(50, 1, 2, "b")], asking=3, alpha=0.01, margin=0.02)
    assert (found.tally.samples, found.tally.challenger_only, found.tally.champion_only) == (150, 10, 3)
    assert found.difference == pytest.approx(7 / 150)
    assert (found.asking, found.alpha, found.margin) == (3, 0.01, 0.02)
    assert found.p_better == pytest.approx(mcnemar(10, 3))
    assert found.lower == pytest.approx(paired_lower_bound(10, 3, 150, 0.99))


@pytest.mark.parametrize(
    ("won", "lost", "better", "no_worse"),
    [(40, 10, True, True), (14, 10, False, True), (10, 10, False, True), (10, 40, False, False)],
)
def test_better_and_no_worse(won: int, lost: int, better: bool, no_worse: bool) -> None:
    found = compare([tally(2_000, won, lost)], asking=1, alpha=0.02, margin=0.02)
    assert (found.better, found.no_worse) == (better, no_worse)


def test_the_bound_counts_and_not_the_estimate() -> None:
    few = compare([tally(60, 2, 1)], asking=1, alpha=0.02, margin=0.02)
    assert few.difference > 0
    assert not few.no_worse
    assert compare([tally(60, 2, 1)], asking=1, alpha=0.02, margin=0.5).no_worse


def test_what_is_better_at_a_large_share_is_not_at_a_small_one() -> None:
    answers = [compare([tally(1_000, 30, 12)], asking=1, alpha=0.05 / 2**k, margin=0.02).better for k in range(12)]
    assert (answers[0], answers[-1]) == (True, False)
    assert answers == sorted(answers, reverse=True)


def test_nothing_to_compare_is_neither_better_nor_an_error() -> None:
    found = compare([], asking=1, alpha=0.02, margin=0.02)
    assert (found.better, found.difference) == (False, 0.0)
    assert str(found) == "judge has no sample of a class that both know"


def test_it_is_told_in_numbers() -> None:
    found = compare([tally(1_000, 40, 10)], asking=1, alpha=0.02, margin=0.02)
    assert str(found) == "99.00% against 96.00% right on 1,000 judge samples (won 40, lost 10)"
    assert "asking 1 of this period; the margin is 2" in found.bound()
    assert found.bound().startswith("better by at least ")
    assert compare([tally(1_000, 10, 12)], asking=1, alpha=0.02, margin=0.02).bound().startswith("worse by at most ")


def test_the_remedy_is_enough_samples() -> None:
    """As many samples as are told, at the rates seen so far, show it."""
    few = compare([tally(300, 6, 6)], asking=1, alpha=0.02, margin=0.02)
    assert not few.no_worse
    said = few.remedy()
    number = int(said.split()[1].replace(",", ""))
    assert said == f"about {number:,} judge samples would show it if the estimate holds"
    assert number > 300
    each = math.ceil(number * 0.02)
    assert compare([tally(number, each, each)], asking=1, alpha=0.02, margin=0.02).no_worse


def test_where_only_a_better_model_helps_no_number_is_told() -> None:
    found = compare([tally(1_000, 10, 40)], asking=1, alpha=0.02, margin=0.02)
    assert found.remedy() == "the estimate itself is below the margin, only a better model helps"
