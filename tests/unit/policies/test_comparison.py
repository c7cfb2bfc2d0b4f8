"""A challenger compared in pairs, within an error budget that all askings of a period share."""

from __future__ import annotations

import dataclasses
import math

import pytest

from policies.comparison import asking_share, compare
from policies.facts import ClassTally
from policies.settings import PromotionSettings
from policies.statistics import mcnemar, paired_lower_bound

SETTINGS = PromotionSettings()


def tally(samples: int, won: int, lost: int, name: str = "a") -> ClassTally:
    return ClassTally(name, samples - won - lost, lost, won, 0)


def test_the_shares_of_all_askings_add_up_to_the_budget() -> None:
    shares = [asking_share(number, 0.05) for number in range(100_000)]
    rest = 100_000.5**-0.6 / 0.6 * 0.05 / 2.2857656655801  # of all that follow, by an integral
    assert sum(shares) + rest == pytest.approx(0.05, rel=1e-6)
    assert shares == sorted(shares, reverse=True)
    assert 0.0 < shares[-1] < shares[0] < 0.05


def test_a_share_is_in_proportion_to_the_budget() -> None:
    assert asking_share(3, 0.1) == pytest.approx(2 * asking_share(3, 0.05))


def test_the_classes_are_compared_together() -> None:
    found = compare([tally(100, 9, 1), tally(50, 1, 2, "b")], 2, SETTINGS)
    assert (found.tally.samples, found.tally.challenger_only, found.tally.champion_only) == (150, 10, 3)
    assert found.difference == pytest.approx(7 / 150)
    assert (found.asking, found.alpha, found.margin) == (3, asking_share(2, 0.05), 0.02)
    assert found.p_better == pytest.approx(mcnemar(10, 3))
    assert found.lower == pytest.approx(paired_lower_bound(10, 3, 150, 1.0 - found.alpha))


@pytest.mark.parametrize(
    ("won", "lost", "better", "no_worse"),
    [(40, 10, True, True), (14, 10, False, True), (10, 10, False, True), (10, 40, False, False)],
)
def test_better_and_no_worse(won: int, lost: int, better: bool, no_worse: bool) -> None:
    found = compare([tally(2_000, won, lost)], 0, SETTINGS)
    assert (found.better, found.no_worse) == (better, no_worse)


def test_the_bound_counts_and_not_the_estimate() -> None:
    few = compare([tally(60, 2, 1)], 0, SETTINGS)
    assert few.difference > 0
    assert not few.no_worse
    assert compare([tally(60, 2, 1)], 0, dataclasses.replace(SETTINGS, margin=0.5)).no_worse


def test_what_was_better_once_is_not_after_many_askings() -> None:
    answers = [compare([tally(1_000, 30, 12)], askings, SETTINGS).better for askings in range(200)]
    assert answers[0] is True
    assert answers[-1] is False
    assert answers == sorted(answers, reverse=True)


def test_nothing_to_compare_is_neither_better_nor_an_error() -> None:
    found = compare([], 0, SETTINGS)
    assert (found.better, found.difference) == (False, 0.0)
    assert str(found) == "judge has no sample of a class that both know"


def test_it_is_told_in_numbers() -> None:
    found = compare([tally(1_000, 40, 10)], 0, SETTINGS)
    assert str(found) == "99.00% against 96.00% right on 1,000 judge samples (won 40, lost 10)"
    assert "asking 1 of this period; the margin is 2" in found.bound()
    assert found.bound().startswith("better by at least ")
    assert compare([tally(1_000, 10, 12)], 0, SETTINGS).bound().startswith("worse by at most ")


def test_the_remedy_is_enough_samples() -> None:
    """As many samples as are told, at the rates seen so far, show it."""
    few = compare([tally(300, 6, 6)], 0, SETTINGS)
    assert not few.no_worse
    said = few.remedy()
    number = int(said.split()[1].replace(",", ""))
    assert said == f"about {number:,} judge samples would show it if the estimate holds"
    assert number > 300
    each = math.ceil(number * 0.02)
    assert compare([tally(number, each, each)], 0, SETTINGS).no_worse


def test_where_only_a_better_model_helps_no_number_is_told() -> None:
    found = compare([tally(1_000, 10, 40)], 0, SETTINGS)
    assert found.remedy() == "the estimate itself is below the margin, only a better model helps"
