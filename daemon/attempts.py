"""The stages of a cycle and the attempts at them, as rows of the journal.

A stage is waiting, running, done, failed or skipped; while it runs, one of its attempts is open.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, update

from daemon.journal import AnyRow, add, change, claim, get, now
from daemon.schema import attempts, stages
from policies.retry import wait_before
from policies.settings import RetrySettings

log = logging.getLogger("relearn")


def find_stage(connection: Connection, cycle: int, step: str, name: str) -> AnyRow:
    """The stage of this name in a step, by its key; made where there is none, and waiting again if it was skipped."""
    mine = (stages.c.cycle_id == cycle, stages.c.step == step, stages.c.name == name)
    row = connection.execute(select(stages).where(*mine)).first()
    if row is None:
        new = {"cycle_id": cycle, "step": step, "name": name, "state": "waiting", "attempts": 0}
        return get(connection, stages, add(connection, stages, **new))
    if row.state == "skipped":
        change(connection, stages, row.id, state="waiting")
        return get(connection, stages, row.id)
    return row


def begin(connection: Connection, stage: int, token: str) -> None:
    """Opens an attempt at a stage that waits."""
    row = get(connection, stages, stage)
    number = row.attempts + 1
    begun = {"attempts": number, "started": row.started or now()}
    if not claim(connection, stages, stage, "waiting", "running", **begun):
        log.error("%s: stage %s is %s: %s does not begin it", row.step, row.name, row.state, token)
        return
    add(connection, attempts, stage_id=stage, number=number, token=token, started=now())


def write(connection: Connection, stage: int, **values: Any) -> None:
    """Writes down what is known of the stage's open attempt."""
    connection.execute(update(attempts).where(_is_open(stage)).values(**values))


def waits(connection: Connection, stage: int) -> bool:
    """Whether the last that the stage's open attempt said is that it waits for others."""
    said = connection.execute(select(attempts.c.progress).where(_is_open(stage))).scalars()
    return any("waiting" in (progress or {}) for progress in said)


def retry(connection: Connection, stage: int, settings: RetrySettings, *, waited: bool) -> float | None:
    """Has the stage begun anew after so many seconds; None: it failed too often. It may wait as often as it must."""
    failures = (attempts.c.stage_id == stage, attempts.c.outcome.in_(("failed", "timed out")))
    failed = len(connection.execute(select(attempts.c.id).where(*failures)).all())
    wait = settings.first_seconds if waited else wait_before(failed + 1, settings)
    if wait is None:
        change(connection, stages, stage, state="failed", ended=now())
    else:
        change(connection, stages, stage, state="waiting")
    return wait


def do_again(connection: Connection, rows: Sequence[AnyRow]) -> None:
    """All stages of a step are done, and it is asked for: what it made is gone. Once more, and never in a loop."""
    for row in rows:
        change(connection, stages, row.id, state="waiting")
    last = rows[-1]
    if last.attempts > 1:
        begin(connection, last.id, f"c{last.cycle_id}.s{last.id}")
        words = "all its stages are done, and still it is asked for: what it made is not in stock"
        write(connection, last.id, ended=now(), outcome="failed", last_words=words)
        change(connection, stages, last.id, state="failed")


def skip_waiting(connection: Connection, cycle: int, unless: str = "") -> None:
    """What a step that was left (for a better one, or at the end) had still planned is not done by it any more."""
    others = (stages.c.cycle_id == cycle, stages.c.step != unless, stages.c.state == "waiting")
    connection.execute(update(stages).where(*others).values(state="skipped"))


def lose(connection: Connection, cycle: int, outcome: str = "lost", alive: Path | None = None) -> None:
    """Attempts still open are over: their child died with the daemon, or was stopped.

    They ended now, or when a file of the folder `alive` was last written: a daemon that was down trained nothing.
    """
    running = select(stages.c.id).where(stages.c.cycle_id == cycle, stages.c.state == "running")
    ended = now() if alive is None else min(_last_written(alive), now())
    for stage in connection.execute(running).scalars().all():
        write(connection, stage, ended=func.max(attempts.c.started, ended), outcome=outcome)
        change(connection, stages, stage, state="waiting")


def _is_open(stage: int) -> Any:
    return (attempts.c.stage_id == stage) & attempts.c.outcome.is_(None)


def _last_written(folder: Path) -> float:
    """When a file below it was last written; 0 where there is none."""
    return max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=0.0)
