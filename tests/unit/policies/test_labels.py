"""When a drop is held for its labels."""

from __future__ import annotations

import pytest

from policies.labels import DropAudit, Folds, hold, hold_drop, is_sure, needs_folds
from policies.settings import LabelSettings


@pytest.mark.parametrize(
    ("audit", "fired"),
    [
        (DropAudit(1, 120, 40), True),
        (DropAudit(1, 120, 40, 1_000, 20), True),
        (DropAudit(1, 120, 40, 1_000, 300), False),  # the classifier flags as many of the others: it tells little
        (DropAudit(1, 120, 40, 19, 0), True),  # too few others to compare with
        (DropAudit(1, 120, 40, 19, 19), True),
        (DropAudit(1, 120, 40, 20, 4), False),
        (DropAudit(1, 120, 12), False),  # 10%: not beyond chance
        (DropAudit(1, 1_200, 150), True),  # 12.5%: with so many labels it is
        (DropAudit(1, 19, 19), False),  # too few
        (DropAudit(1, 20, 20), True),
        (DropAudit(1, 120, 0, 1_000, 0), False),
        (DropAudit(1, 1, 1), False),  # a drop of one image
        (DropAudit(1, 0, 0), False),
    ],
)
def test_hold(audit: DropAudit, fired: bool) -> None:
    finding = hold(audit, LabelSettings())
    assert (finding.policy, finding.fired) == ("labels", fired)


def test_the_reason_has_the_numbers() -> None:
    assert hold(DropAudit(7, 120, 40, 1_000, 20), LabelSettings()).reason == (
        "drop 7: 40 of 120 labels are flagged beyond doubt, at least 23.3% beyond the 2.9% at most of the 1,000 "
        "others; it is held above 10.0%"
    )
    assert hold(DropAudit(7, 3, 3), LabelSettings()).reason == "drop 7: 3 of its labels could be audited, it takes 20"


def test_what_a_person_can_do_is_said() -> None:
    assert hold_drop(DropAudit(7, 120, 40), LabelSettings()).reason.endswith(
        "`relearn flags --drop 7` shows them, `relearn flags release 7` lets the drop in"
    )
    assert hold_drop(DropAudit(7, 120, 1), LabelSettings()).action == "nothing"


@pytest.mark.parametrize(
    ("score", "suggested", "sure"), [(0.01, 0.98, True), (0.02, 0.98, False), (0.01, 0.9, False), (0.3, 0.5, False)]
)
def test_what_is_beyond_doubt(score: float, suggested: float, sure: bool) -> None:
    assert is_sure(score, suggested) is sure


@pytest.mark.parametrize(
    ("drop", "fitted", "since", "since_fitted", "changed", "why"),
    [
        (100, {"cat": 100}, 0, {}, 0, ""),
        (200, {"cat": 200}, 0, {}, 0, ""),  # a fifth
        (201, {"cat": 200}, 0, {}, 0, "201 have come or changed since 1,000 were"),
        (100, {"cat": 100}, 90, {"cat": 90}, 11, "201 have come or changed since 1,000 were"),
        (1, {}, 0, {}, 200, "201 have come or changed since 1,000 were"),
        (1, {"owl": 1}, 0, {}, 0, ""),  # one of a class cannot be audited
        (2, {"owl": 2}, 0, {}, 0, "owl is new"),
        (1, {"owl": 1}, 1, {"owl": 1}, 0, "owl is new"),
        (1, {"ape": 1}, 0, {}, 0, "ape is new"),  # of which one was there
        (7, {"hen": 7}, 3, {"hen": 3}, 0, ""),
        (8, {"hen": 8}, 3, {"hen": 3}, 0, "hen has more than doubled, from 10 samples"),
        (0, {}, 0, {}, 0, ""),
    ],
)
def test_what_makes_folds_necessary(
    drop: int, fitted: dict[str, int], since: int, since_fitted: dict[str, int], changed: int, why: str
) -> None:
    stood_on = {"cat": 600, "dog": 389, "hen": 10, "ape": 1}
    assert needs_folds(Folds(1_000, stood_on, since, since_fitted, changed), drop, fitted) == why


def test_without_folds_they_are_made() -> None:
    assert needs_folds(None, 1, {"cat": 1})
