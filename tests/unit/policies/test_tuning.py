"""When settings are searched anew, as a table."""

from __future__ import annotations

import dataclasses

import pytest

from policies.settings import TuningSettings
from policies.tuning import TuningFacts, why_tune

ON = TuningFacts(trials=8)
FIRST = "net was never tuned for this target: 8 trials"
MISSED = (
    "the champion does not meet the constraints, and the last tuning of net was 1.5 days ago (it takes 1): 8 trials"
)


def tuned(age: float, **changes: float) -> TuningFacts:
    return dataclasses.replace(ON, ages={"net": age}, settings=TuningSettings(**changes))


@pytest.mark.parametrize(
    ("facts", "feasible", "words"),
    [
        (ON, False, FIRST),
        (TuningFacts(), False, None),  # off
        (tuned(29.0), True, None),
        (tuned(30.0), True, "net was tuned 30.0 days ago (it takes 30): 8 trials"),
        (tuned(400.0, days=0.0), True, None),
        (tuned(0.9), False, None),
        (
            tuned(1.5),
            False,
            MISSED,
        ),
        (tuned(29.0, missed_days=0.0), False, None),
        (dataclasses.replace(ON, given_up=frozenset({"net"})), False, None),
        (dataclasses.replace(ON, spent_minutes=60.0, budget_minutes=60.0), False, None),
        (dataclasses.replace(ON, spent_minutes=59.0, budget_minutes=60.0), False, FIRST),
        (dataclasses.replace(ON, spent_minutes=1e6), False, FIRST),
    ],
)  # fmt: skip
def test_the_reasons_to_tune(facts: TuningFacts, feasible: bool, words: str | None) -> None:
    assert why_tune(facts, "net", feasible=feasible, served=True) == words


def test_before_there_is_a_champion_no_constraint_is_missed() -> None:
    assert why_tune(tuned(1.5), "net", feasible=False, served=False) is None
    assert why_tune(tuned(1.5), "other", feasible=False, served=False) is not None
