"""One decision from the evidence, as a table."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from policies.combine import decide
from policies.evidence import Evidence
from policies.facts import ClassCount
from policies.settings import CooldownSettings, PoliciesSettings, RetrySettings

NOW = 1_800_000_000.0
QUIET = Evidence(
    now=NOW,
    target="edge",
    champion=True,
    champion_classes=("a", "b"),
    counts={"a": 500, "b": 500},
    trained_on=1_000,
    judge=(ClassCount("a", 100, 95), ClassCount("b", 100, 85)),
    last_cycle_ended=NOW - 86_400,
    feasible=True,
)
NEW: dict[str, Any] = {"new_by_class": {"a": 150}}
FAILED: dict[str, Any] = {"failures": 2, "last_failure": NOW - 10, "failure_reason": "train: disk\nfull"}
SETTINGS = PoliciesSettings()


@pytest.mark.parametrize(
    ("change", "action", "said"),
    [
        ({}, "nothing", "0 new labelled samples"),
        ({"new_by_class": {"a": 12}}, "nothing", "12 new labelled samples since the last training (a 12)"),
        (NEW, "train", "volume: 150 new labelled samples"),
        ({"counts": {"a": 9, "b": 9, "c": 30}, "new_by_class": {"c": 30}}, "train", "new_class: unknown"),
        ({"new_answers": (ClassCount("a", 100, 50),)}, "train", "accuracy: 50.0% right"),
        ({"requested": "ann: new camera"}, "train", "requested: ann: new camera"),
        (
            {"asked_about": "1f", "asked_by": "ann", "requested": "bob"},
            "judge",
            "requested: ann asked whether 1f may replace what is served",
        ),
        ({"asked_about": "1f", "asked_by": "ann", "constraints_changed": True}, "rejudge", "the constraints changed"),
        ({"asked_about": "1f", "asked_by": "ann", **FAILED}, "judge", "requested: ann asked"),
        ({"constraints_changed": True}, "rejudge", "the constraints changed"),
        ({"constraints_changed": True, "requested": "ann", **NEW}, "rejudge", "the constraints changed"),
        ({**NEW, "last_cycle_ended": NOW - 60}, "wait", "cool-down of 10 minutes"),
        ({**NEW, "last_cycle_ended": NOW - 600}, "train", "volume"),
        ({**NEW, "last_cycle_ended": None}, "train", "volume"),
        ({**NEW, "last_cycle_ended": NOW + 9_999}, "train", "volume"),  # a clock set back
        ({"requested": "ann", "last_cycle_ended": NOW - 1}, "train", "requested"),
        ({**NEW, **FAILED}, "wait", "failed 2 times in a row (train: disk full)"),
        ({**NEW, **FAILED, "failures": 1}, "wait", "failed once (train: disk full)"),
        ({**NEW, **FAILED, "last_failure": NOW - 41}, "train", "volume"),
        ({"requested": "ann", **FAILED}, "train", "requested"),
        (FAILED, "nothing", "0 new"),
        ({"constraints_changed": True, **FAILED}, "wait", "failed 2 times"),
        ({"constraints_changed": True, "constraints_changed_at": NOW - 1, **FAILED}, "rejudge", "changed"),
        ({"constraints_changed": True, "constraints_changed_at": NOW - 99, **FAILED}, "wait", "failed"),
        ({"unmeasured": True}, "rejudge", "no figures as it is served now"),
        ({"unmeasured": True, **FAILED}, "wait", "failed 2 times"),
        ({"unmeasured": True, **NEW}, "train", "new labelled samples"),  # which measures it too
        ({"lost": True}, "rebuild", "its model gives it again"),
        ({"lost": True, "last_cycle_ended": NOW - 1, **NEW}, "rebuild", "lost"),  # at once: clients may be waiting
        ({"lost": True, **FAILED}, "wait", "failed 2 times"),
        ({"lost": True, "rebuildable": False}, "train", "and its model: another has to be trained"),
        ({"lost": True, "rebuildable": False, "last_cycle_ended": NOW - 1}, "train", "another has to be trained"),
        ({"beyond_repair": True, "rebuildable": False, "last_cycle_ended": NOW - 1}, "wait", "cool-down"),
        ({"beyond_repair": True, "rebuildable": False, "last_cycle_ended": NOW - 1e6}, "train", "another has to be"),
        ({"lost": True, "requested": "ann"}, "train", "requested"),  # which builds it again too
        ({"lost": True, "constraints_changed": True}, "rejudge", "changed"),  # and this
        ({"feasible": False}, "nothing", "does not meet its constraints"),
    ],
)
def test_decide(change: dict[str, Any], action: str, said: str) -> None:
    decision = decide(dataclasses.replace(QUIET, **change), SETTINGS)
    assert (decision.action, said in decision.reason) == (action, True), decision.reason
    assert (decision.until is not None) == (action == "wait")
    assert len(decision.findings) == 6


@pytest.mark.parametrize(
    ("change", "action", "said"),
    [
        ({**NEW}, "wait", "paused by ann; otherwise: train: volume: 150 new"),
        ({"asked_about": "1f"}, "wait", "paused by ann; otherwise: judge: requested"),
        ({"lost": True}, "wait", "paused by ann; otherwise: rebuild: "),
        ({"constraints_changed": True}, "wait", "paused by ann; otherwise: rejudge: "),
        ({"unproven": True}, "wait", "paused by ann; otherwise: prove: "),
        ({"requested": "bob asked for it"}, "wait", "paused by ann; otherwise: train: "),
        ({}, "nothing", "paused by ann; volume: 0 new labelled samples"),
        ({**NEW, **FAILED}, "wait", "paused by ann; volume: "),
    ],
)
def test_while_it_is_paused_nothing_begins(change: dict[str, Any], action: str, said: str) -> None:
    decision = decide(dataclasses.replace(QUIET, paused="paused by ann", **change), SETTINGS)
    assert (decision.action, decision.reason.startswith(said)) == (action, True), decision.reason
    assert decision.until is None or change == {**NEW, **FAILED}  # the end of a pause wakes by itself


def test_waits_say_until_when() -> None:
    cooling = decide(dataclasses.replace(QUIET, **NEW, last_cycle_ended=NOW - 60), SETTINGS)
    assert cooling.until == NOW + 540
    assert "2027-01-15 08:09:00 UTC" in cooling.reason
    failed = decide(dataclasses.replace(QUIET, **NEW, **FAILED), SETTINGS)
    assert failed.until == NOW + 30  # 40 s after the second failure


def test_at_the_time_it_said_it_acts() -> None:
    changes: list[dict[str, Any]] = [{"last_cycle_ended": NOW - 60}, FAILED]
    for change in changes:
        waiting = dataclasses.replace(QUIET, **NEW, **change)
        until = decide(waiting, SETTINGS).until
        assert until is not None
        assert decide(dataclasses.replace(waiting, now=until), SETTINGS).action == "train"


def test_long_last_words_are_cut_from_the_front() -> None:
    change = {**NEW, **FAILED, "failure_reason": f"{'x' * 5_000} out of memory"}
    reason = decide(dataclasses.replace(QUIET, **change), SETTINGS).reason
    assert "out of memory" in reason and len(reason) < 700


@pytest.mark.parametrize(
    ("known", "outcome"),
    [
        (("a", "b", "c"), "promoted"),
        (("a", "b"), "kept: the challenger with c was refused"),
        ((), "violated: there is still no champion"),
    ],
)
def test_nothing_is_set_off_by_its_own_cycle(known: tuple[str, ...], outcome: str) -> None:
    """Whatever the verdict was: the samples counted as new are those that the cycle's snapshot did not have."""
    before = dataclasses.replace(
        QUIET, counts={"a": 500, "b": 500, "c": 200}, new_by_class={"c": 200}, champion_classes=("a", "b")
    )
    assert decide(before, SETTINGS).action == "train", outcome
    after = dataclasses.replace(
        before,
        champion=bool(known),
        champion_classes=known,
        feasible=True if known else None,
        new_by_class={},
        trained_on=1_200,
        now=NOW + 86_400,
        last_cycle_ended=NOW,
    )
    assert decide(after, SETTINGS).action == "nothing", outcome


def test_a_cycle_that_always_fails_is_tried_ever_more_seldom() -> None:
    settings = PoliciesSettings(cooldown=CooldownSettings(minutes=0.0), retry=RetrySettings())
    now, starts = NOW, []
    for failures in range(1, 15):
        evidence = dataclasses.replace(QUIET, **NEW, now=now, failures=failures, last_failure=now, last_cycle_ended=now)
        decision = decide(evidence, settings)
        assert decision.action == "wait" and decision.until is not None
        starts.append(decision.until - now)
        now = decision.until
    assert starts[0] >= 10 and starts == sorted(starts) and starts[-1] == settings.retry.max_seconds
