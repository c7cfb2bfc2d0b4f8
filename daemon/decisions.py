"""Deciding: the evidence of each target goes to the policies, the answer becomes a row, and perhaps a cycle."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from daemon import adoption, evidence, forget, pauses, people, schema, snapshot, targets
from daemon.config import Config, dump
from daemon.errors import UsageError
from daemon.journal import add, now
from daemon.stock import take_stock
from daemon.variants import Devices
from policies.combine import decide
from policies.decision import TRIGGERS, Decision
from policies.evidence import Evidence
from policies.facts import Requirement, to_dict
from policies.labels import DropAudit

log = logging.getLogger("relearn")


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of asking about all targets: a cycle to run, or when to look again."""

    cycle: int | None = None
    until: float | None = None


def decide_all(journal: Engine, config: Config, because: str, *, devices: Devices) -> Decided:
    """Decides for each target in turn, until one asks for a cycle: the others are decided when it has ended."""
    until: list[float] = []
    with journal.begin() as connection:
        for said in take_stock(connection, config.state):
            log.warning("%s", said)
        for target, requirement in targets.requirements(connection).items():
            if (cycle := _adopt(connection, config, requirement, because)) is not None:
                return Decided(cycle)
            found = _with_people(connection, evidence.gather(connection, config, requirement, devices=devices))
            decision = decide(found, config.settings.policies)
            row = write(connection, config, target, because, decision, found)
            log.info("%s: %s: %s", target, decision.action, decision.reason)
            if decision.until is not None:
                until.append(decision.until)
            if decision.action in TRIGGERS:
                return Decided(_begin(connection, config, row, requirement, decision, found))
    return Decided(until=min(until, default=None))


def _with_people(connection: Connection, found: Evidence) -> Evidence:
    """The evidence with what people ask of this target."""
    artifact, by = people.asked_about(connection, found.target)
    return dataclasses.replace(
        found,
        requested=people.owed(connection, found.target),
        asked_about=artifact,
        asked_by=by,
        paused=pauses.tell(connection, found.target),
    )


def _adopt(connection: Connection, config: Config, requirement: Requirement, because: str) -> int | None:
    """Begins the cycle of a model that a person wants adopted; None: there is none."""
    request, target = adoption.owed(connection, requirement.target), requirement.target
    if request is None or pauses.tell(connection, target):
        return None
    decision = Decision("adopt", f"{request.by} asked to adopt model {request.arguments['model']}")
    log.info("%s: %s: %s", target, decision.action, decision.reason)
    row = write(connection, config, target, because, decision, None)
    try:
        return adoption.begin(connection, config, row, requirement, request)
    except UsageError as error:
        log.error("%s: %s", target, error)
        adoption.refuse(connection, request, str(error))
        return None


def write(
    connection: Connection,
    config: Config,
    target: str,
    because: str,
    decision: Decision,
    found: Evidence | DropAudit | None,
) -> int:
    """The decision as a row, with all that it rests on: `relearn explain` replays it."""
    return add(
        connection,
        schema.decisions,
        at=now(),
        target=target,
        event=because,
        action=decision.action,
        reason=decision.reason,
        findings=to_dict(decision.findings),
        evidence=to_dict(found) if found else {},
        settings=to_dict(config.settings.policies),
        policy=decision.version,
        until=decision.until,
    )


def _begin(
    connection: Connection,
    config: Config,
    decision_id: int,
    requirement: Requirement,
    decision: Decision,
    found: Evidence,
) -> int:
    return add(
        connection,
        schema.cycles,
        decision_id=decision_id,
        target=requirement.target,
        trigger=TRIGGERS[decision.action],
        about=found.asked_about if decision.action == "judge" else None,
        state="running",
        snapshot_id=_snapshot(connection, config, requirement.target, decision, found),
        requirement=to_dict(requirement),
        settings=dump(config),
        started=now(),
    )


def _snapshot(connection: Connection, config: Config, target: str, decision: Decision, found: Evidence) -> str:
    """What the cycle stands on: the data as it is now, or, to build again what was lost, as it was for that."""
    folder, policies = config.state / "snapshots", config.settings.policies
    champion = targets.champion(connection, target)
    built_on = champion and (adoption.snapshot_of(connection, champion) or champion.snapshot)
    if decision.action == "rebuild" and built_on and _is_whole(connection, folder / f"{built_on}.snapshot"):
        return built_on  # int8 is calibrated on its images
    at_least = policies.new_class.samples if found.champion else policies.volume.first_samples_per_class
    return snapshot.take(connection, folder, known=found.champion_classes, at_least=at_least).id


def _is_whole(connection: Connection, file: Path) -> bool:
    """Whether the snapshot is there, and none of its images was forgotten."""
    try:
        return not forget.forgotten_of(connection, snapshot.read(file)[1])
    except OSError:
        return False
