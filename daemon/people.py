"""What people ask of a running daemon: rows that the command line writes, and a touched file that wakes the loop."""

from __future__ import annotations

import getpass
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from daemon import schema, targets
from daemon.config import Config
from daemon.errors import DaemonNotRunning, NotFound, RelearnError
from daemon.journal import AnyRow, add, change, claim, get, now, open_journal
from daemon.lock import is_running
from daemon.serving import Serving

LOOK_AGAIN_SECONDS = 0.2  # the log is written, which wakes, a moment before what it holds can be read


def ask(journal: Engine, state: Path, kind: str, **arguments: Any) -> int:
    """Writes a request and wakes the daemon. Returns the request's id."""
    with journal.begin() as connection:
        request = add(
            connection,
            schema.requests,
            kind=kind,
            arguments=arguments,
            by=getpass.getuser(),
            at=now(),
            state="asked",
        )
    inbox = state / "inbox"
    inbox.mkdir(exist_ok=True)
    (inbox / "wake").write_text(f"{request}\n")
    return request


def take(journal: Engine, serving: Serving, requests: dict[str, str]) -> Iterator[str]:
    """Takes each open request; yields what a decision is owed to."""
    with journal.connect() as connection:
        asked = list(connection.execute(select(schema.requests).where(schema.requests.c.state == "asked")))
    for request in asked:
        with journal.begin() as connection:
            if not claim(connection, schema.requests, request.id, "asked", "taken"):
                continue
        try:
            answer, because = _do(journal, serving, requests, request)
            state = "done"
        except RelearnError as error:
            answer, because, state = str(error), None, "refused"
        with journal.begin() as connection:
            change(connection, schema.requests, request.id, state=state, answer=answer)
        if because:
            yield because


def _do(journal: Engine, serving: Serving, requests: dict[str, str], request: AnyRow) -> tuple[str, str | None]:
    target = request.arguments["target"]
    with journal.begin() as connection:
        if target not in targets.requirements(connection):
            raise NotFound(f"there is no target {target!r} with a valid constraint file")
        if request.kind == "retrain":
            requests[target] = f"{request.by} asked for it"
            return f"{target} is trained next", f"{request.by} asked for a training of {target}"
        artifact = request.arguments.get("artifact") or previous(journal, target)
        promotion = serving.request(connection, target, artifact, kind="rollback", by=request.by, cycle=None)
    serving.tend()
    return f"{target} goes back to {artifact}, as version {promotion.version}", None


def previous(journal: Engine, target: str) -> str:
    """The artifact that the target served before its champion. Raises NotFound."""
    table = schema.promotions
    with journal.connect() as connection:
        served = list(
            connection.execute(
                select(table.c.artifact_id)
                .where(table.c.target == target, table.c.served.is_not(None))
                .order_by(table.c.version.desc())
            ).scalars()
        )
    earlier = [artifact for artifact in served[1:] if artifact != served[0]]
    if not earlier:
        raise NotFound(f"{target} has served no other artifact before")
    return str(earlier[0])


def ask_and_wait(config: Config, kind: str, seconds: float = 60.0, **arguments: Any) -> dict[str, Any]:
    """Asks the running daemon and waits for its answer, woken by the journal's own changes.

    Raises DaemonNotRunning, or NotFound where the workspace has no journal.
    """
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    journal = open_journal(config.state)
    if not is_running(config.state):
        raise DaemonNotRunning
    woken = threading.Event()

    class Wake(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            woken.set()

    observer = Observer()
    observer.schedule(Wake(), str(config.state), recursive=False)
    observer.start()
    try:
        request = ask(journal, config.state, kind, **arguments)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            woken.clear()
            with journal.connect() as connection:
                row = get(connection, schema.requests, request)
            if row.state in ("done", "refused"):
                return {"request": request, "state": row.state, "answer": row.answer}
            woken.wait(min(left, LOOK_AGAIN_SECONDS))
    finally:
        observer.stop()
    return {"request": request, "state": "asked", "answer": "the daemon has not answered yet; it will"}
