"""The budget of a period is never overspent, whatever the challengers are and however the judge samples grow."""

from __future__ import annotations

import random

import pytest

from policies.budget import DAY, parts, share, this_period
from policies.facts import Asking


def asked(*passed: bool, samples: int = 500) -> tuple[Asking, ...]:
    return tuple(Asking(float(k), 0.0, samples, each) for k, each in enumerate(passed))


def test_all_parts_together_are_at_most_one() -> None:
    draws = random.Random(3)
    for _ in range(50):
        numbers = [draws.choice([0, 10, 500, 20_000]) for _ in range(draws.randint(1, 400))]
        given = parts(numbers)
        assert min(given) > 0.0
        assert sum(given) <= 1.0
    assert sum(parts([500] * 100_000)) == pytest.approx(0.8, abs=1e-3)
    assert sum(parts([500 * 2**k for k in range(40)])) == pytest.approx(
        0.937, abs=1e-3
    )  # the place of each later one has its part still


def test_more_is_given_where_the_samples_have_grown() -> None:
    still, grown = parts([500, 500, 500]), parts([500, 500, 1_000])
    assert still[:2] == grown[:2]
    assert grown[2] == pytest.approx(still[2] + 0.2 * 0.5)
    assert parts([500, 100, 500]) == still  # samples that went and came again are no growth


def test_without_a_pass_each_asking_is_given_its_own_part() -> None:
    given = parts([500] * 4)
    for number in range(4):
        assert share(asked(*[False] * number), 500, 0.05) == pytest.approx(0.05 * given[number])


def test_what_was_passed_leaves_its_share_to_the_next() -> None:
    given = parts([500] * 4)
    assert share(asked(True, True, True), 500, 0.05) == pytest.approx(0.05 * sum(given))
    assert share(asked(True, False, True), 500, 0.05) == pytest.approx(0.05 * sum(given[2:]))
    assert share(asked(True, True, False), 500, 0.05) == pytest.approx(0.05 * given[3])


def test_what_is_spent_on_challengers_that_do_not_pass_never_exceeds_the_budget() -> None:
    """The chance of a first wrong pass is at most the sum over those that should not: all windows are disjoint."""
    draws = random.Random(4)
    for _ in range(200):
        period: tuple[Asking, ...] = ()
        spent, samples, good = 0.0, 100, draws.random()
        for place in range(draws.randint(1, 60)):
            samples += draws.choice([0, 0, 50, 1_000])
            passed = draws.random() < good
            spent += 0.0 if passed else share(period, samples, 0.05)
            period = (*period, Asking(float(place), 0.0, samples, passed))
        assert spent <= 0.05


def test_a_period_begins_with_an_asking_and_ends_after_its_days() -> None:
    first = Asking(at=1 * DAY, began=1 * DAY, samples=10, passed=False)
    second = Asking(at=50 * DAY, began=1 * DAY, samples=10, passed=False)
    assert this_period((first, second), 90 * DAY, 90.0) == (first, second)
    assert this_period((first, second), 91 * DAY, 90.0) == ()
    third = Asking(at=92 * DAY, began=92 * DAY, samples=10, passed=False)
    assert this_period((second, third), 93 * DAY, 90.0) == (third,)
    assert this_period((), 93 * DAY, 90.0) == ()
