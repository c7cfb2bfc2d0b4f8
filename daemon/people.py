"""What people ask of a running daemon: rows that the command line writes, and a touched file that wakes the loop."""

from __future__ import annotations

import getpass
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import OperationalError

from daemon import adoption, conflicts, enough, flags, forget, schema, targets
from daemon.config import Config
from daemon.errors import DaemonNotRunning, NotFound, RelearnError, UsageError
from daemon.journal import AnyRow, add, claim, get, now, open_journal
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


@dataclass(frozen=True, slots=True)
class Taken:
    """A request that was carried out."""

    kind: str
    target: str
    said: str


def take(journal: Engine, serving: Serving) -> Iterator[Taken]:
    """Does what each open request asks, in one transaction with its answer; yields what was not refused."""
    with journal.connect() as connection:
        asked = list(connection.execute(select(schema.requests).where(schema.requests.c.state == "asked")))
    for request in asked:
        try:
            with journal.begin() as connection:
                state, answer = _do(connection, serving, request)
                claim(connection, schema.requests, request.id, "asked", state, answer=answer)
        except (OSError, OperationalError):  # no fault of the request's: it is tried again
            raise
        except Exception as error:  # whatever was written: it must not be met at each start again
            state, answer = "refused", str(error) if isinstance(error, RelearnError) else f"cannot be done: {error!r}"
            with journal.begin() as connection:
                said = answer.encode("utf-8", "backslashreplace").decode()  # it may quote what no text can hold
                claim(connection, schema.requests, request.id, "asked", state, answer=said)
        serving.tend()
        if state != "refused":
            yield Taken(request.kind, request.arguments.get("target", ""), _tell(request, answer))


def _tell(request: AnyRow, answer: str) -> str:
    if request.kind not in ("retrain", "rollback"):
        return f"{request.by}: {answer}"
    what = "training" if request.kind == "retrain" else request.kind
    return f"{request.by} asked for a {what} of {request.arguments['target']}"


def _do(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    act = _ACTS.get(request.kind, _do_for_target)
    return act(connection, serving, request)


def _collect(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "working", "the state folder is looked through"


def _forget(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    what, images = request.arguments["what"], request.arguments.get("images")
    return "working", forget.forget(connection, serving.config, what, request.by, request.id, images)


def _undo(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "done", forget.undo(connection, request.arguments["image"], request.by)


def _release(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "done", flags.release(connection, request.arguments["drop"], request.by)


def _settle_conflicts(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "done", conflicts.settle(connection, **request.arguments, by=request.by)


def _answer_flags(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    chosen = flags.Chosen(**request.arguments["chosen"])
    how, to = request.arguments["how"], request.arguments["to"]
    return "done", flags.answer(connection, how, chosen, to, request.by)


_ACTS: dict[str, Callable[[Connection, Serving, AnyRow], tuple[str, str]]] = {
    "adopt": adoption.take,
    "conflicts": _settle_conflicts,
    "flags": _answer_flags,
    "forget": _forget,
    "gc": _collect,
    "release": _release,
    "undo": _undo,
}


def _do_for_target(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    target = request.arguments["target"]
    requirement = targets.requirements(connection).get(target)
    if requirement is None:
        raise NotFound(f"there is no target {target!r} with a valid constraint file")
    if request.kind == "retrain":
        enough.check(connection, serving.config, target)
        return "owed", f"{target} is trained next"
    named = request.arguments.get("artifact")
    artifact = _find_artifact(connection, named) if named else previous(connection, target)
    stored = get(connection, schema.artifacts, artifact)
    if stored.gone is not None:
        raise UsageError(f"the folder of {artifact} is gone or damaged: it cannot be served")
    model = get(connection, schema.models, stored.model_id)
    if (model.height, model.width) != (requirement.height, requirement.width):
        raise UsageError(
            f"{artifact} takes images of {model.height} x {model.width}, the clients of {target} send "
            f"{requirement.height} x {requirement.width}"
        )
    promotion = serving.request(connection, target, artifact, kind="rollback", by=request.by, cycle=None)
    settle(connection, target, request.at)  # a training that was asked for earlier would undo it
    return "done", f"{target} goes back to {artifact}: Triton loads it as version {promotion.version} now"


def _find_artifact(connection: Connection, name: str) -> str:
    """The artifact whose id begins like this. Raises NotFound, UsageError where several do."""
    ids = connection.execute(select(schema.artifacts.c.id)).scalars()
    found = [id_ for id_ in ids if id_.startswith(name)]
    if name in found or len(found) == 1:
        return name if name in found else str(found[0])
    if found:
        raise UsageError(f"{name} is the beginning of several artifacts: {', '.join(sorted(found))}")
    raise NotFound(f"the journal has no artifact {name!r}; `relearn models` lists them")


def owed(connection: Connection, target: str) -> str | None:
    """Who asked for a training of this target that no cycle has brought to an end yet.

    A row, so that a daemon that is killed in between still owes it, and a cycle that an edit interrupts too.
    """
    open_ = _owed(connection, target)
    return ", ".join(sorted({row.arguments.get("because") or f"{row.by} asked for it" for row in open_})) or None


def settle(connection: Connection, target: str, before: float) -> None:
    """The trainings of this target that people asked for before this moment have come to an end."""
    for row in _owed(connection, target):
        if row.at <= before:
            claim(connection, schema.requests, row.id, "owed", "done")


def _owed(connection: Connection, target: str) -> list[AnyRow]:
    requests = schema.requests
    asked = (requests.c.kind == "retrain", requests.c.state == "owed")
    return [row for row in connection.execute(select(requests).where(*asked)) if row.arguments["target"] == target]


def previous(connection: Connection, target: str) -> str:
    """The artifact that the target served before its champion. Raises NotFound."""
    table = schema.promotions
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
    """Asks the running daemon and waits for its answer, woken by what changes in the state folder.

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
            if row.state not in ("asked", "working"):
                break
            woken.wait(min(left, LOOK_AGAIN_SECONDS))
    finally:
        observer.stop()
    waits = "the daemon has not answered yet; it will"
    return {"request": request, "state": row.state, "answer": waits if row.state == "asked" else row.answer}
