"""What people do not want served, so that the policy does not bring it back by itself.

A person who goes back to an earlier version knows something that no judge sample shows: the policy would put the
better-looking model in front of the clients again at the next occasion. So what a rollback went back behind is no
candidate any more, nor what a person replaced by force, nor what a person refused to approve, until a person
chooses it. A model trained on other data is another one, and may come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from daemon import schema
from daemon.dates import day
from daemon.journal import AnyRow
from daemon.withdrawal import RENEWALS, TAKEN_BACK, was_taken_back

_WENT_BACK = "{by} went back from {gone} on {day}"
_FORCED = "{by} replaced {gone} by force on {day}"


@dataclass(frozen=True, slots=True)
class _Act:
    """Of one person, about one artifact."""

    at: float
    artifact: str
    said: str | None  # why it is declined; None: it was chosen


def declined(connection: Connection, target: str) -> dict[str, str]:
    """The artifacts that are no candidates of the target, each with who declined it, when and how."""
    found: dict[str, str] = {}
    for act in sorted([*_refused(connection, target), *_replaced(connection, target)], key=lambda act: act.at):
        if act.said is None:
            found.pop(act.artifact, None)
        else:
            found[act.artifact] = act.said
    return found


def _refused(connection: Connection, target: str) -> Iterator[_Act]:
    table = schema.verdicts
    refused = select(table).where(table.c.target == target, table.c.approval == "refused")
    for row in connection.execute(refused).all():
        why = f" ({row.because})" if row.because else ""
        said = f"{row.answered_by} refused {row.artifact_id} on {day(row.answered)}{why}"
        yield from (_Act(row.answered, artifact, said) for artifact in _alike(connection, row.artifact_id))


def _alike(connection: Connection, artifact: str) -> list[str]:
    """All artifacts of the same model."""
    artifacts = schema.artifacts
    model = select(artifacts.c.model_id).where(artifacts.c.id == artifact).scalar_subquery()
    return list(connection.execute(select(artifacts.c.id).where(artifacts.c.model_id == model)).scalars())


def _replaced(connection: Connection, target: str) -> Iterator[_Act]:
    """What people put in front of the clients, and what went for it: all artifacts of the same model with it."""
    table, artifacts = schema.promotions, schema.artifacts
    taken_back = table.c.error.startswith(TAKEN_BACK) & table.c.kind.not_in(RENEWALS)
    counts = table.c.served.is_not(None) | (table.c.state == "switching") | taken_back
    rows = connection.execute(select(table).where(table.c.target == target, counts).order_by(table.c.version)).all()
    if all(row.by == "policy" and not _was_not_wanted(row) for row in rows):
        return
    models = {row.id: row.model_id for row in connection.execute(select(artifacts.c.id, artifacts.c.model_id))}
    for index, row in enumerate(rows):
        if row.kind in ("rollback", "forced") and not _was_not_wanted(row):
            said = _WENT_BACK if row.kind == "rollback" else _FORCED
            for gone in _taken_away(row, [earlier for earlier in rows[:index] if earlier.served is not None]):
                model = models[gone]
                alike = [gone] if model == models[row.artifact_id] else [a for a, of in models.items() if of == model]
                why = said.format(by=row.by, gone=gone, day=day(row.started))
                yield from (_Act(row.started, artifact, why) for artifact in alike)
        if _was_not_wanted(row):
            said = f"{row.artifact_id} was {row.error} on {day(row.started)}"
            yield from (_Act(row.started, artifact, said) for artifact in _alike(connection, row.artifact_id))
        elif row.by != "policy":
            yield _Act(row.started, row.artifact_id, None)


def _was_not_wanted(row: AnyRow) -> bool:
    """Whether a person wanted no more of the model that was coming: not of the champion's own renewal."""
    return row.kind not in RENEWALS and was_taken_back(row)


def _taken_away(row: AnyRow, earlier: Sequence[AnyRow]) -> list[str]:
    """By force: what was served before. By going back: all that was served since what it went back to."""
    since = [before.artifact_id for before in earlier]
    if row.kind == "rollback" and row.artifact_id in since:
        last = len(since) - 1 - since[::-1].index(row.artifact_id)
        return list(dict.fromkeys(since[last + 1 :]))
    return [artifact for artifact in since[-1:] if artifact != row.artifact_id]
