"""Asking the promotion policy: the paired answers are counted, the policy judges, both are written down."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import Connection, select

from daemon import approvals, schema, targets
from daemon.journal import add, now
from daemon.targets import JudgeSet
from daemon.variants import Devices
from policies.budget import DAY
from policies.constraints import shortfalls
from policies.facts import Asking, Candidate, ClassTally, Requirement, Verdict, from_dict, to_dict
from policies.promotion import judge as judge_candidate
from policies.settings import PromotionSettings


def ask(
    connection: Connection,
    *,
    cycle: int,
    requirement: Requirement,
    challenger: Candidate,
    champion_feasible: bool,
    judge: JudgeSet,
    devices: Devices,
    settings: PromotionSettings,
    forgotten: tuple[int, int] = (0, 0),
    newest: JudgeSet | None = None,
) -> Verdict:
    """The verdict on a challenger that was proven on this judge set, as a row with all that it was judged on.

    forgotten: images that were, from which the champion alone learnt, and the challenger alone. newest: what of the
    judge set came since the champion was trained, where that is known.
    """
    target, at = requirement.target, now()
    champion = _rival(connection, requirement, champion_of(connection, target), judge, devices)
    anchor = _rival(connection, requirement, anchor_of(connection, requirement, devices), judge, devices)
    against_anchor = anchor and anchor.artifact not in (champion and champion.artifact, challenger.artifact)
    facts = {
        "requirement": requirement,
        "challenger": challenger,
        "champion": champion,
        "tallies": _tallies(connection, judge, challenger, champion) if champion else (),
        "anchor": _tallies(connection, judge, challenger, anchor) if anchor and against_anchor else None,
        "champion_feasible": champion_feasible,
        "askings": _askings(connection, target, at - settings.period_days * DAY),
        "now": at,
        "forgotten": forgotten,
        "newest": _tallies(connection, newest, challenger, champion) if champion and newest else (),
    }
    verdict = judge_candidate(**facts, settings=settings)  # type: ignore[arg-type]
    approval = approvals.state_of(verdict.answer, settings)
    approvals.supersede(connection, target, challenger.artifact, approval)
    add(
        connection,
        schema.verdicts,
        cycle_id=cycle,
        target=target,
        artifact_id=challenger.artifact,
        champion_id=champion.artifact if champion else None,
        answer=verdict.answer,
        reason=verdict.reason,
        better=verdict.better,
        verdict=to_dict(verdict),
        facts=to_dict({**facts, "settings": settings}),
        at=at,
        approval=approval,
    )
    return verdict


def unproven(
    connection: Connection, requirement: Requirement, judge: JudgeSet, devices: Devices, valid: Collection[str]
) -> tuple[str, ...]:
    """Champion and anchor, where they could be compared but lack answers to some judge samples, as given now.

    valid: the artifacts whose stored answers are as they would be given now (daemon/proofs.py). One that has gone from
    the disk cannot be asked: it is compared on what it answered.
    """
    rivals = {champion_of(connection, requirement.target), anchor_of(connection, requirement, devices)}
    in_stock = {candidate.artifact for candidate in targets.candidates(connection, requirement, (), devices)}
    asked = sorted(in_stock & rivals)
    return tuple(name for name in asked if name not in valid or not judge.covered(connection, name))


def champion_of(connection: Connection, target: str) -> str | None:
    """The artifact that the target serves."""
    champion = targets.champion(connection, target)
    return champion.artifact if champion else None


def anchor_of(connection: Connection, requirement: Requirement, devices: Devices) -> str | None:
    """The anchor, as long as it meets the constraints itself: nobody must match what could not be served."""
    artifact = targets.anchor(connection, requirement.target)
    candidate = artifact and targets.known(connection, requirement, artifact, devices)
    return artifact if candidate and not shortfalls(requirement, candidate) else None


def _rival(
    connection: Connection, requirement: Requirement, artifact: str | None, judge: JudgeSet, devices: Devices
) -> Candidate | None:
    candidate = artifact and targets.known(connection, requirement, artifact, devices)
    if not candidate:
        return None
    return replace(candidate, proof=judge.counts(connection, candidate.artifact, candidate.classes))


def _tallies(
    connection: Connection, judge: JudgeSet, challenger: Candidate, rival: Candidate
) -> tuple[ClassTally, ...]:
    both = [name for name in challenger.classes if name in rival.classes]
    return judge.tallies(connection, challenger.artifact, rival.artifact, both)


def _askings(connection: Connection, target: str, since: float) -> tuple[Asking, ...]:
    """The comparisons of the target's challengers with a champion on the judge samples, oldest first."""
    table = schema.verdicts
    compared = (table.c.target == target, table.c.champion_id.is_not(None), table.c.at > since)
    rows = list(connection.execute(select(table.c.verdict, table.c.at).where(*compared).order_by(table.c.id)))
    if not rows:
        return ()
    # A verdict of the policy's first version does not tell: it counts as one that was not passed.
    untold = Asking(rows[0].at, rows[0].at, samples=0, passed=False)
    found = [from_dict(Verdict, row.verdict) for row in rows]
    return tuple(v.asking or replace(untold, at=row.at) for v, row in zip(found, rows, strict=True) if _counts(v))


def _counts(verdict: Verdict) -> bool:
    return verdict.asking is not None or verdict.policy == 1
