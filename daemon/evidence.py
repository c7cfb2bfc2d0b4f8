"""What is known of a target at this moment, gathered from the journal for the policies to judge."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import adoption, schema, snapshot, standings, targets
from daemon.config import Config
from daemon.journal import AnyRow, now
from daemon.standings import Labelled
from daemon.variants import Devices
from policies.evidence import Evidence
from policies.facts import ClassCount, DriftCheck, Requirement, Role, from_dict

log = logging.getLogger("relearn")
DAY = 86_400.0


def gather(connection: Connection, config: Config, requirement: Requirement, *, devices: Devices) -> Evidence:
    """The evidence for one target, as of now, what people ask apart."""
    target = requirement.target
    champion = targets.champion(connection, target)
    counts = standings.by_class(standings.count(connection))
    before = _last_training(connection, config, target)
    # A class too small for any snapshot yet is not new data: it would set off trainings that leave it out.
    policies = config.settings.policies
    at_least = policies.new_class.samples if champion else policies.volume.first_samples_per_class
    held = {name for name, number in counts.items() if number >= at_least} | set(champion.classes if champion else ())
    changed = standings.usable_since(connection, before.changed, before.classes)
    new = [row for row in changed if row.name in held and before.class_of(row.sha256) != row.name]
    ended, failures, failed_at, words = _history(connection, target)
    judge = _proof(connection, config, champion) if champion else ()
    trained = last_trained(connection, target)
    trained_at = trained.started if trained else None
    confidence = config.settings.promotion.confidence
    feasible = (
        targets.feasible(connection, requirement, champion, judge, devices=devices, confidence=confidence)
        if champion
        else None
    )
    return Evidence(
        now=now(),
        target=target,
        champion=champion is not None,
        champion_classes=champion.classes if champion else (),
        counts=dict(counts),
        new_by_class=dict(Counter(row.name for row in new)),
        gone=sum(1 for sha in standings.unusable_since(connection, before.changed) if sha in before.rows),
        trained_on=len(before.rows),
        new_answers=_new_answers(connection, champion, new) if champion else (),
        judge=judge,
        drift=_drift(connection, trained_at),
        trained_at=trained_at,
        **_refused(connection, trained),
        trained_seconds=trained_seconds(connection),
        last_cycle_ended=ended,
        failures=failures,
        last_failure=failed_at,
        failure_reason=words,
        constraints_changed=constraints_changed(connection, requirement),
        constraints_changed_at=_edited_at(connection, target),
        feasible=feasible,
        unmeasured=champion is not None
        and feasible is True
        and targets.unmeasured(connection, requirement, champion, devices),
        lost=champion is not None and _is_lost(connection, target, champion),
        beyond_repair=champion is not None
        and targets.is_beyond_repair(connection, champion, config.repository_of(champion.server), target),
        rebuildable=champion is None or targets.has_model(connection, champion.artifact),
        unproven=champion is not None and adoption.is_unproven(connection, champion, judge),
    )


def constraints_changed(connection: Connection, requirement: Requirement) -> bool:
    """Whether the requirement is another than that by which the stored candidates were last judged.

    Where they never were (what is served was adopted), another than that of the first cycle.
    """
    cycles = schema.cycles
    done = select(cycles.c.requirement).where(cycles.c.target == requirement.target, cycles.c.state == "done")
    judged = done.where(cycles.c.trigger.in_(("data", "constraints"))).order_by(cycles.c.id.desc())
    answered = connection.execute(judged).scalar() or connection.execute(done.order_by(cycles.c.id)).scalar()
    return answered is not None and from_dict(Requirement, answered) != requirement


def _is_lost(connection: Connection, target: str, champion: targets.Champion) -> bool:
    """Whether the champion's artifact has to be made again, and no cycle came to its end since."""
    artifacts, cycles = schema.artifacts, schema.cycles
    since = connection.execute(select(artifacts.c.gone).where(artifacts.c.id == champion.artifact)).scalar()
    if since is None:
        return False
    builds = cycles.c.trigger.in_(("data", "constraints", "stock"))
    tried = (cycles.c.target == target, cycles.c.started >= since, cycles.c.state == "done", builds)
    return connection.execute(select(cycles.c.id).where(*tried)).first() is None


def _edited_at(connection: Connection, target: str) -> float | None:
    files = schema.constraint_files
    return connection.execute(
        select(func.max(files.c.at)).where(files.c.target == target, files.c.requirement.is_not(None))
    ).scalar()


def unobserved(connection: Connection, config: Config, target: str) -> tuple[targets.Champion, list[bytes]] | None:
    """The champion and the new labelled samples of train and tune that it has not answered yet (hashes)."""
    champion = targets.champion(connection, target)
    if champion is None:
        return None
    before = _last_training(connection, config, target)
    if before.lost:
        return None  # its snapshot is lost: what the champion has learnt from cannot be told from what is new
    changed = standings.usable_since(connection, before.changed, before.classes)
    table = schema.observations
    seen = set(connection.execute(select(table.c.sample_id).where(table.c.artifact_id == champion.artifact)).scalars())
    known = set(champion.classes)
    return champion, [
        row.sha256
        for row in changed
        if row.role != "judge" and row.name in known and row.sample not in seen and row.sha256 not in before.rows
    ]


def last_trained(connection: Connection, target: str) -> AnyRow | None:
    """The target's last finished cycle that data asked for, or that trained."""
    cycles = schema.cycles
    trained = (cycles.c.trigger == "data") | cycles.c.id.in_(select(schema.models.c.cycle_id))
    found: AnyRow | None = connection.execute(
        select(cycles).where(cycles.c.target == target, cycles.c.state == "done", trained).order_by(cycles.c.id.desc())
    ).first()
    return found


@dataclass(frozen=True, slots=True)
class _Trained:
    """What the last training stood on. Where there was none: nothing."""

    rows: Mapping[bytes, tuple[str, Role]] = field(default_factory=dict)
    classes: Sequence[str] = ()
    changed: int = 0  # the last change to a standing that it knew of
    lost: bool = False  # it cannot be read any more

    def class_of(self, sha: bytes) -> str | None:
        return self.rows[sha][0] if sha in self.rows else None


def _last_training(connection: Connection, config: Config, target: str) -> _Trained:
    cycle = last_trained(connection, target)
    if cycle is None:
        return _Trained()
    table = schema.snapshots
    changed = connection.execute(select(table.c.changed).where(table.c.id == cycle.snapshot_id)).scalar_one()
    try:
        classes, rows = snapshot.read(config.state / "snapshots" / f"{cycle.snapshot_id}.snapshot")
    except OSError as error:
        log.warning("%s: what the last training knew is not known any more: all counts as new", error)
        return _Trained(lost=True)
    return _Trained(rows, classes, changed)


def _drift(connection: Connection, since: float | None) -> tuple[DriftCheck, ...]:
    """The checks since the last training, the newest last."""
    table = schema.drift_checks
    rows = connection.execute(select(table.c.figures).where(table.c.at > (since or 0.0)).order_by(table.c.id))
    return tuple(from_dict(DriftCheck, figures) for figures in rows.scalars())


def _refused(connection: Connection, trained: AnyRow | None) -> dict[str, Any]:
    """Of the last training, where its model was refused: the newest drift checks before it, and what was new then."""
    if trained is None or trained.outcome == "promoted" or _is_served_since(connection, trained.id):
        return {}
    table, decisions = schema.drift_checks, schema.decisions
    newest = select(func.max(table.c.id)).where(table.c.at <= trained.started).group_by(table.c.kind)
    rows = connection.execute(select(table.c.figures).where(table.c.id.in_(newest)).order_by(table.c.id))
    known = connection.execute(select(decisions.c.evidence).where(decisions.c.id == trained.decision_id)).scalar()
    return {
        "refused_drift": tuple(from_dict(DriftCheck, figures) for figures in rows.scalars()),
        "refused_new": sum((known or {}).get("new_by_class", {}).values()),
    }


def _is_served_since(connection: Connection, cycle: int) -> bool:
    """Whether a person put what this cycle had made in front of the clients, after it had ended."""
    promotions, verdicts = schema.promotions, schema.verdicts
    mine = select(verdicts.c.id).where(verdicts.c.cycle_id == cycle)
    served = (promotions.c.verdict_id.in_(mine), promotions.c.served.is_not(None))
    return connection.execute(select(promotions.c.id).where(*served)).first() is not None


def trained_seconds(connection: Connection) -> float:
    """Of the last 24 hours, how long was trained and tuned in them, whatever came of it."""
    attempts, stages = schema.attempts, schema.stages
    until = now()
    since = until - DAY
    rows = connection.execute(
        select(attempts.c.started, func.coalesce(attempts.c.ended, until))
        .join(stages, stages.c.id == attempts.c.stage_id)
        .where(stages.c.name.in_(("train", "tune")), func.coalesce(attempts.c.ended, until) > since)
    )
    return float(sum(max(ended - max(started, since), 0.0) for started, ended in rows))


def _history(connection: Connection, target: str) -> tuple[float | None, int, float | None, str]:
    """When the last cycle ended; how many failed in a row since, when the last of them did, and why."""
    cycles = schema.cycles
    rows: list[AnyRow] = list(
        connection.execute(
            select(cycles.c.state, cycles.c.ended, cycles.c.reason)
            .where(cycles.c.target == target, cycles.c.state.in_(("done", "failed")))
            .order_by(cycles.c.id.desc())
            .limit(50)
        )
    )
    failures = 0
    for row in rows:
        if row.state != "failed":
            break
        failures += 1
    ended = rows[0].ended if rows else None
    return ended, failures, ended if failures else None, rows[0].reason if failures else ""


def _proof(connection: Connection, config: Config, champion: targets.Champion) -> tuple[ClassCount, ...]:
    proofs = schema.proofs
    id_ = connection.execute(
        select(proofs.c.snapshot_id).where(proofs.c.artifact_id == champion.artifact).order_by(proofs.c.id.desc())
    ).scalar()
    if id_ is None:
        return ()
    try:
        _, rows = snapshot.read(config.state / "snapshots" / f"{id_}.snapshot")
    except OSError as error:
        log.warning("%s: how good the champion was when it was proven cannot be said", error)
        return ()
    return targets.judge_set(connection, rows).counts(connection, champion.artifact, champion.classes)


def _new_answers(connection: Connection, champion: targets.Champion, new: list[Labelled]) -> tuple[ClassCount, ...]:
    table = schema.observations
    asked = select(table.c.sample_id, table.c.predicted).where(table.c.artifact_id == champion.artifact)
    answered = {row.sample_id: row.predicted for row in connection.execute(asked)}
    rows = [row for row in new if row.sample in answered]
    samples = Counter(row.name for row in rows)
    correct = Counter(row.name for row in rows if answered[row.sample] == row.name)
    return tuple(ClassCount(name, number, correct[name]) for name, number in sorted(samples.items()))
