"""Pauses: while one lasts nothing begins and the policy promotes nothing; all that only looks and mends goes on.

A row each, so that a pause outlives the daemon.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from daemon import schema, targets
from daemon.dates import moment
from daemon.errors import NotFound, UsageError
from daemon.journal import AnyRow, add, change, now

pauses = schema.pauses


def standing(connection: Connection, target: str | None = None) -> list[AnyRow]:
    """The pauses that last: those that hold this target (its own, and that of all), or every one there is."""
    rows = connection.execute(select(pauses).where(pauses.c.ended.is_(None)).order_by(pauses.c.id))
    return [row for row in rows if target is None or row.target in (None, target)]


def tell(connection: Connection, target: str) -> str | None:
    """Who paused the target, since when and why, in a sentence; None: it is not paused."""
    return "; ".join(describe(row) for row in standing(connection, target)) or None


def describe(row: AnyRow) -> str:
    """«all targets are paused by ann since 2026-05-01 10:00:00 (the line is rebuilt)»."""
    why = f" ({row.because})" if row.because else ""
    return f"{f'{row.target} is' if row.target else 'all targets are'} paused by {row.by} since {moment(row.at)}{why}"


def pause(connection: Connection, target: str | None, by: str, because: str | None) -> str:
    """Pauses one target, or all. Returns what that means. Raises NotFound, UsageError where it is paused already."""
    if target is not None and target not in targets.requirements(connection):
        raise NotFound(f"there is no target {target!r} with a valid constraint file")
    for row in standing(connection):
        if row.target == target:
            raise UsageError(f"{describe(row)} already; `relearn resume` ends that")
    add(connection, pauses, target=target, by=by, at=now(), because=because)
    made = describe(standing(connection)[-1])
    ends = f"`relearn resume{f' {target}' if target else ''}`"
    return (
        f"{made}: nothing is begun, and nothing promoted but by people, until {ends}; "
        "what comes is still read, and what serves is still mended"
    )


def resume(connection: Connection, target: str | None, by: str) -> str:
    """Ends the pause of one target, or every pause. Raises UsageError where there is none to end."""
    found = [row for row in standing(connection) if target is None or row.target == target]
    if not found:
        others = "; ".join(describe(row) for row in standing(connection, target)) if target else ""
        nothing = f"{target} is not paused" if target else "nothing is paused"
        raise UsageError(f"{nothing} by itself: {others}; `relearn resume` ends that" if others else nothing)
    for row in found:
        change(connection, pauses, row.id, ended=now(), ended_by=by)
    left = [describe(row) for row in standing(connection, target)] if target else []
    still = f"; still, {'; '.join(left)}" if left else ""
    return f"{', '.join(row.target or 'everything' for row in found)} goes on{still}"
