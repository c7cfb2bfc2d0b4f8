"""What the journal shows of the data: samples, flags, drift, and what could not be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import schema, standings
from daemon.journal import now
from policies.drift import judge_drift
from policies.facts import DriftCheck, from_dict
from policies.settings import DriftSettings

View = dict[str, Any]


def data(connection: Connection) -> View:
    """Samples by class and role, and the files that could not be used."""
    classes: dict[str, Counter[str | None]] = {}
    states: Counter[str] = Counter()
    for (state, name, role), number in standings.count(connection).items():
        states[state] += number
        if name is not None and state in standings.LABELLED:
            classes.setdefault(name, Counter())[role] += number
    occurrences = schema.occurrences
    flags = schema.flags
    flagged = (
        select(func.count(func.distinct(flags.c.id)))
        .join(occurrences, occurrences.c.sample_id == flags.c.sample_id)
        .where(flags.c.state == "open", occurrences.c.gone.is_(None))
    )
    return {
        "classes": {name: dict(counts) for name, counts in sorted(classes.items())},
        "unlabelled": states["unlabelled"],
        "in_conflict": states["conflict"],
        "held": states["held"],
        "flagged": connection.execute(flagged).scalar(),
        "rejected": connection.execute(select(func.count()).where(schema.rejections.c.gone.is_(None))).scalar(),
    }


def reading(connection: Connection) -> View | None:
    """The drop that is being taken in, with how far it is; None: none is. Speed in files/s, time left in seconds."""
    table = schema.drops
    row = connection.execute(
        select(table).where(table.c.state.in_(("reading", "matching"))).order_by(table.c.id.desc())
    ).first()
    if row is None:
        return None
    done = row.added + row.rejected
    speed = done / max(now() - row.started, 1e-3)
    left = max(row.files - done, 0) / speed if speed else None
    return {"drop": row.id, "state": row.state, "files": row.files, "done": done, "speed": speed, "seconds_left": left}


def drift(connection: Connection, settings: DriftSettings) -> list[View]:
    """The newest check of each kind of images, and what the policy says of it."""
    table = schema.drift_checks
    newest = select(func.max(table.c.id)).group_by(table.c.kind)
    rows = connection.execute(select(table).where(table.c.id.in_(newest)).order_by(table.c.kind))
    found = []
    for row in rows:
        finding = judge_drift(from_dict(DriftCheck, row.figures), settings)
        about = {"at": row.at, "model": row.model_id, "up_to_drop": row.up_to_drop}
        found.append({**row.figures, **about, "alarm": finding.fired, "reason": finding.reason})
    return found


def flags(connection: Connection, drop: int | None = None) -> View:
    """The open flags, the least likely label first, by drop where one is named; and the drops that are held."""
    table, samples, occurrences = schema.flags, schema.samples, schema.occurrences
    rows = connection.execute(
        select(table, samples.c.sha256, occurrences.c.folder, occurrences.c.path, occurrences.c.drop_id)
        .join(samples, samples.c.id == table.c.sample_id)
        .join(occurrences, (occurrences.c.sample_id == samples.c.id) & occurrences.c.gone.is_(None))
        .where(table.c.state == "open", *([] if drop is None else [occurrences.c.drop_id == drop]))
        .order_by(table.c.score, table.c.id)
    )
    held = connection.execute(select(schema.drops).where(schema.drops.c.state == "held").order_by(schema.drops.c.id))
    return {
        "flags": [
            {
                "id": row.id,
                "file": str(Path(row.folder) / row.path),
                "sha256": row.sha256.hex(),
                "given": row.given,
                "suggested": row.suggested,
                "score": row.score,
                "why": f"{row.given} by its folder; seen without its label, {row.suggested} has a probability of "
                f"{row.suggested_score:.2g}, {row.given} of {row.score:.2g} (embedding of model {row.model_id})",
                "drop": row.drop_id,
                "at": row.at,
            }
            for row in {row.id: row for row in rows}.values()  # a sample may lie in several places
        ],
        "held": [{"drop": row.id, "images": row.added, "reason": row.reason} for row in held],
    }


def rejected(connection: Connection) -> list[View]:
    """Files that could not be used and are still there, with the reason; the newest first."""
    table = schema.rejections
    rows = connection.execute(select(table).where(table.c.gone.is_(None)).order_by(table.c.id.desc()))
    return [
        {"file": str(Path(row.folder) / row.path), "reason": row.reason, "drop": row.drop_id, "at": row.at}
        for row in rows
    ]
