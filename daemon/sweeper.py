"""The lane that tidies the state folder: what no root needs goes, and what was forgotten is erased.

Looking and deleting take long where there is much, and are done by a thread, one chore at a time. What goes is written
down and taken out of everyone's way by the loop itself, between two steps: nothing that begins then can be using it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, func, select, update

from daemon import erase, forget, gc, schema, store
from daemon.config import Config
from daemon.events import ChoreEnded, Event
from daemon.journal import add, change, now
from daemon.sources import Sources

log = logging.getLogger("relearn")
HOUR = 3600.0
TROUBLE_SECONDS = 60.0  # after which what could not be done is tried again
MOST = 10_000  # things that are taken away at once: the loop waits for that
BOUND_SECONDS = 60.0  # between two looks whether the bound is kept


class Sweeper:
    """What is to be done, and the chore that is being done; steps are taken where nothing else could be disturbed."""

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None], sources: Sources) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.sources = sources
        self.due: list[str] = []  # why the state folder is to be looked through
        self.planned: gc.Plan | None = None
        self.chore: str | None = None
        self.sweep: tuple[int, gc.Plan] | None = None  # that is being carried out
        self.because = ""
        self.looked = 0.0
        self.rests_until = 0.0  # after trouble
        self.complained = False

    def reconfigure(self, config: Config) -> None:
        """Looks as these settings say, and when they say it."""
        self.config = config
        with self.journal.connect() as connection:
            last = connection.execute(select(func.max(schema.sweeps.c.at))).scalar() or now()
        self.sources.fire_at(last + config.settings.store.gc_hours * HOUR, "gc")

    def want(self, because: str) -> None:
        """Asks for a look through the state folder."""
        self.due.append(because)

    def look_at_bound(self) -> None:
        """Something was made: where there is a bound, whether it is still kept."""
        if self.config.settings.store.max_gb and now() - self.looked > BOUND_SECONDS:
            self.looked = now()
            self.want("store.max_gb")

    def recover(self) -> None:
        """Goes on with what people asked for, and waits for the next look by the timer."""
        table = schema.requests
        with self.journal.begin() as connection:
            last = connection.execute(select(func.max(schema.sweeps.c.at))).scalar()
            if last is None:  # the first start: from now on it is counted
                last = now()
                nothing = {"bytes": 0, "freed": 0, "removed": []}
                add(connection, schema.sweeps, because="the first start", at=last, ended=last, **nothing)
            asked = select(table.c.by).where(table.c.kind == "gc", table.c.state == "working")
            self.due += [f"{by} asked for it" for by in connection.execute(asked).scalars()]
            begun = select(schema.sweeps.c.id).where(schema.sweeps.c.ended.is_(None))
            if connection.execute(begun).first() is not None:
                self.want("the daemon ended in the midst of it")
                connection.execute(update(schema.sweeps).where(schema.sweeps.c.ended.is_(None)).values(ended=now()))
        self.sources.fire_at(last + self.config.settings.store.gc_hours * HOUR, "gc")

    def step(self) -> bool:
        """Begins a chore, or takes away what was found. False: there is nothing to do, or the thread is busy."""
        if self.chore is not None or now() < self.rests_until:
            return False
        with self.journal.connect() as connection:
            shas = forget.unerased(connection)
        if shas:
            with contextlib.suppress(store.StoreUnwritable):  # of what a killed reader left: none reads now
                store.clear_incoming(self.config.state / "store")
            self._send("erase", lambda: (shas, erase.erase(self.config.state, shas)))
        elif self.planned is not None:
            self._take_away(self.planned)
        elif self.due:
            self.because, self.looked = "; ".join(dict.fromkeys(self.due)), now()
            self.due.clear()
            self._send("look", self._look)
        return False

    def _look(self) -> gc.Plan:
        with self.journal.connect() as connection:
            return gc.plan(connection, self.config, MOST)

    def _take_away(self, planned: gc.Plan) -> None:
        """Written down, then out of the way; what takes long is left to the thread."""
        self.planned = None
        with self.journal.begin() as connection:
            sweep, items = gc.claim(connection, self.config, planned, self.because)
        aside = gc.set_aside(items)
        self.sweep = (sweep, planned)
        self._send("delete", lambda: gc.delete(aside))

    def _send(self, chore: str, work: Callable[[], Any]) -> None:
        self.chore = chore

        def run() -> None:
            try:
                self.put(ChoreEnded(chore, work(), None))
            except Exception as error:  # whatever it is, the next look tries again
                self.put(ChoreEnded(chore, None, f"{type(error).__name__}: {error}"))

        threading.Thread(target=run, name=f"sweeper {chore}", daemon=True).start()

    def ended(self, event: ChoreEnded) -> None:
        """Writes down what the thread has done."""
        self.chore = None
        if event.error is not None:
            log.error("tidying the state folder (%s): %s; it is tried again", event.chore, event.error)
            self.rests_until = now() + TROUBLE_SECONDS
            self.sources.fire_at(self.rests_until, "gc")
        elif event.chore == "erase":
            self._erased(*event.result)
        elif event.chore == "look":
            self.planned = event.result
        if event.chore == "delete":
            self._conclude()

    def _erased(self, shas: list[bytes], lost: list[str]) -> None:
        with self.journal.begin() as connection:
            forget.settle(connection, shas)
            for artifact in lost:
                change(connection, schema.artifacts, artifact, gone=now())
        log.info("forgotten, and removed for good: %d images", len(shas))

    def _conclude(self) -> None:
        """Says what was removed, to the log and to who asked for it; looks again where the bound asks for more."""
        assert self.sweep is not None
        (sweep, planned), self.sweep = self.sweep, None
        gc.finish(self.journal, sweep)
        with self.journal.begin() as connection:
            row = gc.last(connection)
            assert row is not None
            said = gc.tell(row)
            over = gc.explain_over(planned, self.config)
            answered = (schema.requests.c.kind == "gc", schema.requests.c.state == "working")
            answer = f"{said}\n{over}" if over else said
            connection.execute(update(schema.requests).where(*answered).values(state="done", answer=answer))
        log.log(logging.INFO if row["removed"] else logging.DEBUG, "%s", said)
        if over and not self.complained:
            log.error("%s", over)
        self.complained = over is not None
        if planned.more or (planned.over and row["freed"]):
            self.want(self.because)  # there is more, or what followed from what was removed is free now
        self.sources.fire_at(now() + self.config.settings.store.gc_hours * HOUR, "gc")
