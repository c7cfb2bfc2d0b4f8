"""When a comparison with what the champion was tuned on is an alarm, and what may ask for a training together."""

from __future__ import annotations

import dataclasses

import pytest

from policies.combine import decide
from policies.drift import drift
from policies.evidence import Evidence
from policies.facts import DriftCheck
from policies.settings import BudgetSettings, DriftSettings, PoliciesSettings, RuleSettings, StalenessSettings

NOW = 1_800_000_000.0
QUIET = Evidence(
    now=NOW, target="edge", champion=True, champion_classes=("a", "b"), counts={"a": 500, "b": 500}, trained_on=1_000,
    feasible=True, trained_at=NOW - 30 * 86_400, new_by_class={"a": 12},
)  # fmt: skip


def check(kind: str = "labelled", chance: float = 0.0025) -> DriftCheck:
    return DriftCheck(kind, 40, 200, 0.93, chance)


@pytest.mark.parametrize(
    ("checks", "fired"),
    [
        ((), [False, False]),
        ((check(),), [True, False]),
        ((check(chance=0.011),), [False, False]),
        ((check(chance=0.01),), [True, False]),
        ((check("unlabelled"),), [False, True]),
        ((check(), check(chance=0.5)), [False, False]),  # the newest counts
        ((check("unlabelled"), check()), [True, True]),
    ],
)
def test_alarm(checks: tuple[DriftCheck, ...], fired: list[bool]) -> None:
    found = drift(Evidence(now=NOW, target="edge", drift=checks), DriftSettings())
    assert [finding.policy for finding in found] == ["drift", "drift_unlabelled"]
    assert [finding.fired for finding in found] == fired


def test_the_reason_has_the_numbers() -> None:
    found, none = drift(Evidence(now=NOW, target="edge", drift=(check(),)), DriftSettings())
    assert found.reason == (
        "40 labelled images are told apart from 200 of tune with an area of 0.93: 0.25 of 100 clean windows look as "
        "different, 1 of 100 is an alarm"
    )
    assert none.reason == "no 10 unlabelled images have come since the last training that could be compared"


@pytest.mark.parametrize(
    ("checks", "rule", "action"),
    [
        ((check(),), RuleSettings(), "train"),
        ((check("unlabelled"),), RuleSettings(), "nothing"),  # of those alone nobody could learn
        ((check(),), RuleSettings(alone=("volume",), together=("drift", "drift_unlabelled")), "nothing"),
        (
            (check(), check("unlabelled")),
            RuleSettings(alone=("volume",), together=("drift", "drift_unlabelled")),
            "train",
        ),
        ((check(), check("unlabelled")), RuleSettings(alone=("volume",), together=("drift",)), "nothing"),
    ],
)
def test_the_rule_says_what_suffices(checks: tuple[DriftCheck, ...], rule: RuleSettings, action: str) -> None:
    evidence = dataclasses.replace(QUIET, drift=checks)
    assert decide(evidence, dataclasses.replace(PoliciesSettings(), rule=rule)).action == action


@pytest.mark.parametrize(
    ("settings", "new", "fired"),
    [
        (StalenessSettings(), {"a": 12}, False),  # off
        (StalenessSettings(days=29), {"a": 12}, True),
        (StalenessSettings(days=31), {"a": 12}, False),
        (StalenessSettings(days=29, samples=13), {"a": 12}, False),
        (StalenessSettings(days=29), {}, False),  # nothing new to learn
    ],
)
def test_staleness(settings: StalenessSettings, new: dict[str, int], fired: bool) -> None:
    evidence = dataclasses.replace(QUIET, new_by_class=new)
    found = decide(evidence, dataclasses.replace(PoliciesSettings(), staleness=settings))
    assert (found.action == "train") is fired
    assert any(finding.policy == "staleness" and finding.fired is fired for finding in found.findings)


@pytest.mark.parametrize(("spent", "action"), [(0.0, "train"), (3_599.0, "train"), (3_600.0, "wait")])
def test_a_spent_budget_waits(spent: float, action: str) -> None:
    settings = dataclasses.replace(PoliciesSettings(), budget=BudgetSettings(minutes_per_day=60))
    found = decide(dataclasses.replace(QUIET, drift=(check(),), trained_seconds=spent), settings)
    assert found.action == action
    if action == "wait":
        assert "60 minutes of training in the last 24 hours" in found.reason
        assert found.until is not None
        assert found.until > NOW
    asked = dataclasses.replace(QUIET, requested="ann", trained_seconds=spent)
    assert decide(asked, settings).action == "train"  # a person is not held back


REFUSED = dataclasses.replace(QUIET, refused_drift=(check(),), refused_new=40)


@pytest.mark.parametrize(
    ("checks", "new", "action"),
    [
        ((check(),), 10, "nothing"),
        ((check(), check()), 39, "nothing"),
        ((check(),), 40, "train"),
        ((check(chance=0.5), check()), 10, "train"),  # it was quiet in between
        ((check("unlabelled", 0.5), check()), 10, "nothing"),  # of another kind
    ],
)
def test_an_alarm_whose_training_was_refused_asks_again_when_as_much_is_new(
    checks: tuple[DriftCheck, ...], new: int, action: str
) -> None:
    evidence = dataclasses.replace(REFUSED, drift=checks, new_by_class={"a": new})
    found = decide(evidence, PoliciesSettings())
    assert found.action == action
    if action == "nothing":
        assert (
            f"it was an alarm before the last training too, whose model was refused: {new} labelled samples are new, "
            "it asks again from 40 on, or after a quiet check"
        ) in found.reason


def test_an_alarm_that_asked_for_no_refused_training_is_not_held_back() -> None:
    alarmed = dataclasses.replace(QUIET, drift=(check(),), refused_new=40)
    assert decide(alarmed, PoliciesSettings()).action == "train"
    other = dataclasses.replace(alarmed, refused_drift=(check(chance=0.5), check("unlabelled")))
    assert decide(other, PoliciesSettings()).action == "train"  # the refused training was asked for by something else


def test_age_alone_wakes_the_daemon() -> None:
    """What waits for its day is looked at again on that day, though nothing comes."""
    settings = dataclasses.replace(PoliciesSettings(), staleness=StalenessSettings(days=31))
    found = decide(QUIET, settings)
    assert QUIET.trained_at is not None
    assert (found.action, found.until) == ("nothing", QUIET.trained_at + 31 * 86_400)
    assert decide(dataclasses.replace(QUIET, now=found.until), settings).action == "train"
    for quiet in (
        decide(dataclasses.replace(QUIET, new_by_class={}), settings),
        decide(QUIET, PoliciesSettings()),
        decide(QUIET, dataclasses.replace(settings, rule=RuleSettings(alone=("volume",), together=("drift",)))),
    ):
        assert (quiet.action, quiet.until) == ("nothing", None)


def test_the_first_training_is_no_matter_of_the_rule() -> None:
    first = Evidence(now=NOW, target="edge", counts={"a": 500, "b": 500})
    for rule in (RuleSettings(alone=("accuracy",), together=()), RuleSettings(alone=(), together=("volume", "drift"))):
        assert decide(first, dataclasses.replace(PoliciesSettings(), rule=rule)).action == "train"
    waits = dataclasses.replace(first, counts={"a": 5})
    assert decide(waits, PoliciesSettings()).action == "nothing"
