"""Verdicts that wait for a person: what they are, whether they may still be approved, and what was answered.

With `promotion.approval = "ask"` whatever the policy would promote waits, and at any setting what would take a class
from the clients. One verdict of a target waits at a time: the newest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection, select, update

from daemon import schema, snapshot, standings, stock, targets
from daemon.config import Config
from daemon.errors import UsageError
from daemon.journal import AnyRow, change, get, now
from policies.facts import ClassTally, Requirement, from_dict
from policies.settings import PromotionSettings

verdicts = schema.verdicts
promotions = schema.promotions


def state_of(answer: str, settings: PromotionSettings) -> str | None:
    """What the approval of a new verdict is: "waiting" where a person has to answer, else None."""
    asked = answer == "ask" or (answer == "promote" and settings.approval == "ask")
    return "waiting" if asked else None


def supersede(connection: Connection, target: str, artifact: str, approval: str | None) -> None:
    """Before a verdict is written: what waits for the target waits no longer, if this one waits or is on the same.

    A refusal of another artifact leaves it waiting: it is as good as it was.
    """
    waits = (verdicts.c.target == target, verdicts.c.approval == "waiting")
    same = () if approval else (verdicts.c.artifact_id == artifact,)
    connection.execute(update(verdicts).where(*waits, *same).values(approval="superseded", answered=now()))


def waiting(connection: Connection, target: str) -> AnyRow | None:
    """The verdict of the target that waits for a person; None: none does."""
    waits = (verdicts.c.target == target, verdicts.c.approval == "waiting")
    return connection.execute(select(verdicts).where(*waits).order_by(verdicts.c.id.desc())).first()


def last_on(connection: Connection, target: str, artifact: str) -> AnyRow | None:
    """The newest verdict on an artifact; None: it was never asked about."""
    mine = (verdicts.c.target == target, verdicts.c.artifact_id == artifact)
    return connection.execute(select(verdicts).where(*mine).order_by(verdicts.c.id.desc())).first()


def refuse(connection: Connection, target: str, by: str, because: str | None) -> str:
    """The champion stays, and the policy brings this model no more. Raises UsageError where nothing waits."""
    row = _get_waiting(connection, target)
    answer(connection, row.id, "refused", by, because)
    why = f": {because}" if because else ""
    said = f"{row.artifact_id} is not promoted to {target}, and its model not asked about again{why}"
    again = _ask_again(connection, target)
    return f"{said}; {again.artifact_id} (v{again.id}), which waited before, waits again" if again else said


def _ask_again(connection: Connection, target: str) -> AnyRow | None:
    """The newest verdict that another one took the place of, if it still holds: it waits again."""
    gone = select(verdicts).where(verdicts.c.target == target, verdicts.c.approval == "superseded")
    for row in connection.execute(gone.order_by(verdicts.c.id.desc())).all():
        newest = last_on(connection, target, row.artifact_id)
        if newest is not None and newest.id == row.id and find_change(connection, row) is None:
            change(connection, verdicts, row.id, approval="waiting", answered=None)
            return row
    return None


def find_approved(connection: Connection, state: Path, target: str) -> AnyRow:
    """The verdict that waits, where nothing has changed that it rests on. Raises UsageError."""
    row = _get_waiting(connection, target)
    if fault := find_fault(connection, state, row):
        again = f"`relearn promote {target} {row.artifact_id}` has it judged by what holds now"
        raise UsageError(f"v{row.id} on {row.artifact_id} cannot be approved any more: {fault}; {again}")
    return row


def answer(connection: Connection, verdict: int, approval: str, by: str, because: str | None = None) -> None:
    """Writes down what a person said to a verdict."""
    about = {"answered": now(), "answered_by": by, "because": because}
    change(connection, verdicts, verdict, approval=approval, **about)


def _get_waiting(connection: Connection, target: str) -> AnyRow:
    row = waiting(connection, target)
    if row is None:
        raise UsageError(f"nothing waits for a person's answer for {target}")
    return row


def find_fault(connection: Connection, state: Path, verdict: AnyRow) -> str | None:
    """What has changed since that a verdict rests on; None: it holds as it was said."""
    return find_change(connection, verdict) or _find_loss(connection, state, verdict)


def find_change(connection: Connection, verdict: AnyRow) -> str | None:
    """Whether another champion serves than it compared with, or another constraint file stands."""
    target = verdict.target
    requirement = targets.requirements(connection).get(target)
    if requirement != from_dict(Requirement, verdict.facts["requirement"]):
        return f"the constraints of {target} {'are gone' if requirement is None else 'have changed'}"
    champion = targets.champion(connection, target)
    serves = champion.artifact if champion else None
    if verdict.champion_id is not None:
        changed = serves != verdict.champion_id
    else:  # nothing was served, or nothing that could be compared with
        changed = champion is not None and get(connection, promotions, champion.promotion).served > verdict.at
    if not changed:
        return None
    compared = f"it was compared with {verdict.champion_id}" if verdict.champion_id else "it was compared with nothing"
    return f"{compared}, and {target} serves {serves or 'nothing'} now"


def find_news(connection: Connection, config: Config, verdict: AnyRow) -> str | None:
    """What may lead to another answer than a verdict gave: more judge samples, other settings; None: nothing."""
    then, today = from_dict(PromotionSettings, verdict.facts["settings"]), config.settings.promotion
    if replace(then, approval=today.approval) != today:
        return "[promotion] was edited"
    tallies = [from_dict(ClassTally, tally) for tally in verdict.facts["tallies"]]
    before, count = sum(tally.samples for tally in tallies), standings.count(connection)
    after = sum(count.get((standings.USABLE, tally.name, "judge"), 0) for tally in tallies)
    return f"there are {after:,} judge samples in place of {before:,}" if after > before else None


def _find_loss(connection: Connection, state: Path, verdict: AnyRow) -> str | None:
    artifact = get(connection, schema.artifacts, verdict.artifact_id)
    if artifact.gone is not None or stock.find_damage(connection, state, artifact.id):
        return f"the folder of {artifact.id} is gone or damaged"
    if forgotten := _forgotten_since(connection, state, artifact.model_id, verdict.at):
        return f"it learnt from {forgotten:,} images that were forgotten since"
    return None


def _forgotten_since(connection: Connection, state: Path, model: str, since: float) -> int:
    """How many images, forgotten after this moment, a model learnt from; all of them where that cannot be told."""
    samples = schema.samples
    recent = connection.execute(select(samples.c.sha256).where(samples.c.forgotten > since)).scalars().all()
    if not recent:
        return 0
    of = get(connection, schema.models, model).snapshot_id
    try:
        _, rows = snapshot.read(state / "snapshots" / f"{of}.snapshot")
    except OSError:
        return len(recent)
    return sum(1 for sha in recent if sha in rows and rows[sha][1] != "judge")
