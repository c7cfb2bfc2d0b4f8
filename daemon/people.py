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

from daemon import adoption, approvals, choices, conflicts, enough, flags, forget, pauses, schema, targets
from daemon.config import Config
from daemon.errors import DaemonNotRunning, NotFound, RelearnError
from daemon.journal import AnyRow, add, change, claim, get, now, open_journal
from daemon.lock import is_running
from daemon.serving import Serving
from policies.facts import Requirement

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


def _reload(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "working", "config.toml is read again"


def _release(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "done", flags.release(connection, request.arguments["drop"], request.by)


def _settle_conflicts(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "done", conflicts.settle(connection, **request.arguments, by=request.by)


def _answer_flags(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    chosen = flags.Chosen(**request.arguments["chosen"])
    how, to = request.arguments["how"], request.arguments["to"]
    return "done", flags.answer(connection, how, chosen, to, request.by)


def _pause(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    asked = request.arguments
    return "done", pauses.pause(connection, asked["target"], request.by, asked["because"])


def _resume(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    return "done", pauses.resume(connection, request.arguments["target"], request.by)


def _do_for_target(connection: Connection, serving: Serving, request: AnyRow) -> tuple[str, str]:
    target = request.arguments["target"]
    requirement = targets.requirements(connection).get(target)
    if requirement is None:
        raise NotFound(f"there is no target {target!r} with a valid constraint file")
    state, answer = _FOR_TARGET[request.kind](connection, serving, requirement, request)
    paused = pauses.tell(connection, target)
    return state, f"{answer}; {paused}{_WHILE_PAUSED[state]}" if paused else answer


# To whom a pause applies: what people do is done; what they leave to the daemon waits.
_WHILE_PAUSED = {"done": ", which holds nobody but the daemon", "owed": ": it waits for `relearn resume`"}


def _retrain(connection: Connection, serving: Serving, asked: Requirement, request: AnyRow) -> tuple[str, str]:
    enough.check(connection, serving.config, asked.target)
    return "owed", f"{asked.target} is trained next"


def _roll_back(connection: Connection, serving: Serving, asked: Requirement, request: AnyRow) -> tuple[str, str]:
    said = choices.rollback(connection, serving, asked, request.arguments.get("artifact"), request.by)
    settle(connection, asked.target, request.at)  # a training that was asked for earlier would undo it
    first = f"{request.by} went back first"
    settle_asked(connection, asked.target, first)
    adoption.drop(connection, asked.target, first)
    return "done", said


def _promote(connection: Connection, serving: Serving, asked: Requirement, request: AnyRow) -> tuple[str, str]:
    artifact, force = choices.find_artifact(connection, request.arguments["artifact"]), request.arguments["force"]
    # In full: by the time that a cycle comes to it, its beginning may be that of several.
    change(connection, schema.requests, request.id, arguments={**request.arguments, "artifact": artifact})
    return choices.promote(connection, serving, asked, artifact, request.by, force=force)


def _approve(connection: Connection, serving: Serving, asked: Requirement, request: AnyRow) -> tuple[str, str]:
    return "done", choices.approve(connection, serving, asked, request.by)


def _refuse(connection: Connection, serving: Serving, asked: Requirement, request: AnyRow) -> tuple[str, str]:
    return "done", approvals.refuse(connection, asked.target, request.by, request.arguments["because"])


_FOR_TARGET: dict[str, Callable[[Connection, Serving, Requirement, AnyRow], tuple[str, str]]] = {
    "approve": _approve,
    "promote": _promote,
    "refuse": _refuse,
    "retrain": _retrain,
    "rollback": _roll_back,
}

_ACTS: dict[str, Callable[[Connection, Serving, AnyRow], tuple[str, str]]] = {
    "adopt": adoption.take,
    "conflicts": _settle_conflicts,
    "flags": _answer_flags,
    "forget": _forget,
    "gc": _collect,
    "pause": _pause,
    "release": _release,
    "reload": _reload,
    "resume": _resume,
    "undo": _undo,
}


def owed(connection: Connection, target: str) -> str | None:
    """Who asked for a training of this target that no cycle has brought to an end yet.

    A row, so that a daemon that is killed in between still owes it, and a cycle that an edit interrupts too.
    """
    open_ = _owed(connection, target, "retrain")
    return ", ".join(sorted({row.arguments.get("because") or f"{row.by} asked for it" for row in open_})) or None


def asked_about(connection: Connection, target: str) -> tuple[str | None, str]:
    """The artifact that people want judged, the first of several, and who does; (None, ""): none."""
    open_ = _owed(connection, target, "promote")
    artifact = open_[0].arguments["artifact"] if open_ else None
    return artifact, ", ".join(sorted({row.by for row in open_ if row.arguments["artifact"] == artifact}))


def settle(connection: Connection, target: str, before: float) -> None:
    """The trainings of this target that people asked for before this moment have come to an end."""
    for row in _owed(connection, target, "retrain"):
        if row.at <= before:
            claim(connection, schema.requests, row.id, "owed", "done")


def settle_asked(connection: Connection, target: str, answer: str, artifact: str | None = None) -> None:
    """What people wanted judged has its answer: one artifact, or all that they asked about."""
    for row in _owed(connection, target, "promote"):
        if artifact in (None, row.arguments["artifact"]):
            claim(connection, schema.requests, row.id, "owed", "done", answer=answer)


def _owed(connection: Connection, target: str, kind: str) -> list[AnyRow]:
    table = schema.requests
    rows = connection.execute(select(table).where(table.c.state == "owed", table.c.kind == kind).order_by(table.c.id))
    return [row for row in rows if row.arguments["target"] == target]


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
