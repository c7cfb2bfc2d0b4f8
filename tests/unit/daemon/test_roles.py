"""Roles: the shares hold in every class, and a small class gets a judge."""

from __future__ import annotations

from collections import Counter

import pytest

from daemon.roles import Balance
from policies.facts import ROLES, Role

SHARES: dict[Role, float] = {"train": 0.8, "tune": 0.1, "judge": 0.1}


def behind(counts: Counter[Role], shares: dict[Role, float], key: str, number: int = 1) -> Role:
    """The role of a group of so many samples of one class."""
    return Balance({"cat": counts}, shares).choose({"cat": number}, key)


def give(number: int, shares: dict[Role, float] = SHARES, name: str = "") -> Counter[Role]:
    counts: Counter[Role] = Counter()
    for index in range(number):
        counts[behind(counts, shares, f"{name}{index}")] += 1
    return counts


@pytest.mark.parametrize(
    "shares", [SHARES, {"train": 0.6, "tune": 0.2, "judge": 0.2}, {"train": 0.34, "tune": 0.33, "judge": 0.33}]
)
@pytest.mark.parametrize("number", [1, 5, 9, 10, 37, 100, 1234])
def test_the_shares_hold_within_one_sample(number: int, shares: dict[Role, float]) -> None:
    counts = give(number, shares)
    assert sum(counts.values()) == number
    for role in ROLES:
        assert abs(counts[role] - shares[role] * number) < 1.5


@pytest.mark.parametrize("name", [f"class {index}" for index in range(20)])
def test_ten_samples_are_enough_for_a_judge_and_a_tuner(name: str) -> None:
    assert give(10, name=name) == {"train": 8, "tune": 1, "judge": 1}


def test_the_hash_breaks_ties_both_ways() -> None:
    counts: Counter[Role] = Counter(train=8)
    given = {behind(counts, SHARES, str(index)) for index in range(50)}
    assert given == {"tune", "judge"}


def test_a_role_without_share_is_never_given() -> None:
    assert give(50, {"train": 0.8, "tune": 0.0, "judge": 0.2}) == {"train": 40, "judge": 10}


def test_the_same_sample_gets_the_same_role() -> None:
    assert {behind(Counter(train=8), SHARES, "x") for _ in range(5)} == {behind(Counter(train=8), SHARES, "x")}


def test_what_left_is_made_up_for() -> None:
    """After a judge sample's file was deleted, the next sample of the class takes its place."""
    assert behind(Counter(train=80, tune=10, judge=5), SHARES, "x") == "judge"
