"""Asking the promotion policy: who is compared with whom, how often, and that a verdict can be replayed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from sqlalchemy import Engine

from daemon import schema, snapshot, targets, verdicts
from daemon.journal import now
from policies.budget import DAY
from policies.facts import Asking, Candidate, ClassTally, Requirement, Verdict, from_dict, to_dict
from policies.promotion import judge as judge_candidate
from policies.settings import PromotionSettings

World = Any  # tests/unit/daemon/conftest.py


class Court:
    """A target with forty judge samples, a champion, and a challenger that is proven on them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cats = world.samples("cat", "judge", 20)
        self.dogs = world.samples("dog", "judge", 20)
        self.requirement: Requirement = world.requirement()

    def challenge(self, name: str, wrong: list[int], classes: tuple[str, ...] = ("cat", "dog")) -> int:
        cycle: int = self.world.cycle()
        self.world.artifact(name, cycle, classes)
        self.world.measure(name)
        self.world.prove(name, cycle, wrong)
        return cycle

    def judge(self, cycle: int) -> targets.JudgeSet:
        row = self.world.row(schema.cycles, id=cycle)
        _, rows = snapshot.read(self.world.config.state / "snapshots" / f"{row.snapshot_id}.snapshot")
        with self.world.journal.connect() as connection:
            return targets.judge_set(connection, rows)

    def ask(self, name: str, cycle: int, *, feasible: bool = True, **settings: Any) -> Verdict:
        judge = self.judge(cycle)
        with self.world.journal.begin() as connection:
            challenger = targets.known(connection, self.requirement, name, self.world.devices)
            assert challenger is not None
            challenger = dataclasses.replace(challenger, proof=judge.counts(connection, name, challenger.classes))
            return verdicts.ask(
                connection,
                cycle=cycle,
                requirement=self.requirement,
                challenger=challenger,
                champion_feasible=feasible,
                judge=judge,
                devices=self.world.devices,
                settings=PromotionSettings(**settings),
            )

    def unproven(self, cycle: int, valid: tuple[str, ...] = ("best", "old", "new")) -> tuple[str, ...]:
        judge = self.judge(cycle)
        with self.world.journal.connect() as connection:
            return verdicts.unproven(connection, self.requirement, judge, self.world.devices, valid)

    def champion(self, name: str = "old", version: int = 1, wrong: list[int] | None = None, **how: Any) -> None:
        cycle = self.challenge(name, wrong or [])
        self.world.promote(name, version, cycle_id=cycle, **how)


@pytest.fixture
def court(world: World) -> Court:
    return Court(world)


def test_the_first_is_compared_with_nobody(court: Court) -> None:
    verdict = court.ask("new", court.challenge("new", court.cats[:1]))
    assert (verdict.answer, verdict.better) == ("promote", True)
    row = court.world.row(schema.verdicts)
    assert (row.target, row.artifact_id, row.champion_id, row.answer) == ("edge", "new", None, "promote")
    assert (row.reason, row.better, from_dict(Verdict, row.verdict)) == (verdict.reason, True, verdict)
    assert "97.50% right on 40 judge samples" in verdict.reason


def test_a_better_one_is_compared_in_pairs(court: Court) -> None:
    court.champion(wrong=court.cats[:15])
    verdict = court.ask("new", court.challenge("new", court.cats[14:16]))
    row = court.world.row(schema.verdicts)
    assert (verdict.answer, verdict.better, row.champion_id) == ("promote", True, "old")
    assert row.facts["tallies"] == [to_dict(ClassTally("cat", 4, 1, 14, 1)), to_dict(ClassTally("dog", 20, 0, 0, 0))]
    assert row.facts["askings"] == []


def test_classes_that_one_of_them_does_not_know_are_not_compared(court: Court) -> None:
    court.champion()
    newts = court.world.samples("newt", "judge", 5)
    cycle = court.challenge("new", newts[:1], ("cat", "dog", "newt"))
    court.ask("new", cycle)
    facts = court.world.row(schema.verdicts).facts
    assert [tally["name"] for tally in facts["tallies"]] == ["cat", "dog"]
    assert {"name": "newt", "samples": 5, "correct": 4} in facts["challenger"]["proof"]


@pytest.mark.parametrize(("feasible", "answer"), [(True, "keep"), (False, "promote")])
def test_an_infeasible_champion_gives_way(court: Court, feasible: bool, answer: str) -> None:
    court.champion()
    verdict = court.ask("new", court.challenge("new", court.cats[:3]), feasible=feasible)
    assert verdict.answer == answer
    assert court.world.row(schema.verdicts).facts["champion_feasible"] is feasible


def test_a_champion_that_cannot_be_compared_is_none(court: Court) -> None:
    """It takes images of another size: it was made before an edit of the constraints."""
    cycle = court.world.cycle()
    court.world.artifact("old", cycle, height=64)
    court.world.promote("old")
    court.ask("new", court.challenge("new", []))
    assert court.world.row(schema.verdicts).champion_id is None


@pytest.mark.parametrize(
    "change",
    [
        {"wrong": []},
        {"wrong": [0, 1, 2]},
        {"wrong": list(range(20))},
        {"feasible": False, "wrong": [3]},
        {"margin": 0.5, "wrong": [0]},
    ],
)
def test_a_stored_verdict_can_be_replayed(court: Court, change: dict[str, Any]) -> None:
    court.champion("first", 1, kind="rollback", state="retired")
    court.champion("old", 2, wrong=court.cats[:2])
    change = dict(change)
    wrong = [court.cats[index] for index in change.pop("wrong")]
    court.ask("new", court.challenge("new", wrong), **change)
    row = court.world.row(schema.verdicts)
    facts = json.loads(json.dumps(row.facts))
    assert facts["anchor"] is not None

    def tallies(name: str) -> tuple[ClassTally, ...]:
        return tuple(from_dict(ClassTally, one) for one in facts[name])

    again = judge_candidate(
        from_dict(Requirement, facts["requirement"]),
        from_dict(Candidate, facts["challenger"]),
        from_dict(Candidate, facts["champion"]),
        tallies("tallies"),
        anchor=tallies("anchor"),
        champion_feasible=facts["champion_feasible"],
        askings=[from_dict(Asking, one) for one in facts["askings"]],
        now=facts["now"],
        settings=from_dict(PromotionSettings, facts["settings"]),
    )
    assert to_dict(again) == row.verdict


# --- anchor ---------------------------------------------------------------------------------------------------------


def test_the_anchor_is_compared_with_too(court: Court) -> None:
    """Small steps down: no worse than the champion is not enough where the last that was better is further up."""
    court.champion("best", 1, kind="rollback", state="retired")
    court.champion("old", 2, wrong=court.cats[:12])
    verdict = court.ask("new", court.challenge("new", court.cats[:11]), margin=0.1)
    facts = court.world.row(schema.verdicts).facts
    assert facts["anchor"] == [to_dict(ClassTally("cat", 9, 11, 0, 0)), to_dict(ClassTally("dog", 20, 0, 0, 0))]
    assert (verdict.answer, "the last one promoted as better" in verdict.reason) == ("keep", True)


@pytest.mark.parametrize("best", ["old", "new"])
def test_the_anchor_is_not_compared_with_itself(court: Court, best: str) -> None:
    court.champion("old", 2)
    cycle = court.challenge("new", [])
    court.world.promote(best, 1, kind="rollback", state="retired")
    court.ask("new", cycle)
    assert court.world.row(schema.verdicts).facts["anchor"] is None


def test_nobody_must_match_an_anchor_that_could_not_be_served(court: Court) -> None:
    court.champion("best", 1, kind="rollback", state="retired")
    court.world.measure("best", latency_p95_ms=99.0)
    court.champion("old", 2, wrong=court.cats[:2])
    cycle = court.challenge("new", court.cats[:1])
    court.ask("new", cycle)
    assert court.world.row(schema.verdicts).facts["anchor"] is None
    court.world.samples("cat", "judge", 1, mark="later")
    assert court.unproven(court.world.cycle()) == ("old",)


# --- rivals that lack answers ---------------------------------------------------------------------------------------


def test_rivals_with_all_answers_are_proven(court: Court) -> None:
    court.champion()
    assert court.unproven(court.world.cycle()) == ()


def test_rivals_that_might_answer_otherwise_now_are_named(court: Court) -> None:
    court.champion()
    assert court.unproven(court.world.cycle(), valid=()) == ("old",)


def test_rivals_that_lack_answers_are_named(court: Court) -> None:
    court.champion("best", 1, kind="rollback", state="retired")
    court.champion("old", 2)
    before = court.world.cycle()
    court.world.samples("dog", "judge", 1, mark="later")
    assert court.unproven(before) == ()  # the snapshot's samples count, not those that came since
    assert court.unproven(court.world.cycle()) == ("best", "old")


def test_rivals_of_another_input_size_are_not_asked(court: Court) -> None:
    court.champion()
    court.world.samples("dog", "judge", 1, mark="later")
    court.requirement = court.world.requirement(height=64)
    assert court.unproven(court.world.cycle()) == ()


# --- askings --------------------------------------------------------------------------------------------------------


def test_each_asking_costs_and_is_counted(court: Court) -> None:
    court.champion()
    asked: list[dict[str, Any]] = []
    for number in range(3):
        cycle = court.challenge(f"new{number}", court.cats[:2])
        court.ask(f"new{number}", cycle)
        assert court.world.rows(schema.verdicts)[-1].facts["askings"] == asked
        asked.append(court.world.rows(schema.verdicts)[-1].verdict["asking"])
    last = court.world.rows(schema.verdicts)[-1]
    assert "asking 3 of this period" in last.reason


@pytest.mark.parametrize(
    ("days", "target", "champion", "policy", "counted"),
    [
        (89.0, "edge", "old", 1, 1),  # of a journal before verdicts told
        (89.0, "edge", "old", 2, 0),  # nothing was compared
        (91.0, "edge", "old", 1, 0),
        (1.0, "other", "old", 1, 0),
        (1.0, "edge", None, 1, 0),
    ],
)
def test_what_counts_as_an_asking(
    court: Court, journal: Engine, days: float, target: str, champion: str | None, policy: int, counted: int
) -> None:
    court.champion()
    cycle = court.challenge("new", [])
    verdict = {"answer": "keep", "reason": "", "policy": policy}
    said = {"answer": "keep", "reason": "", "better": False, "verdict": verdict, "facts": {}, "at": now() - days * DAY}
    with journal.begin() as connection:
        values = {"cycle_id": cycle, "target": target, "artifact_id": "new", "champion_id": champion, **said}
        connection.execute(schema.verdicts.insert().values(**values))
    court.ask("new", cycle, period_days=90.0)
    assert len(court.world.rows(schema.verdicts)[-1].facts["askings"]) == counted
