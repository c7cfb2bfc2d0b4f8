"""The lane that runs cycles: one at a time, so that what measures has the machine to itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, select

from daemon import forget, pauses, people, schema
from daemon.children import Child
from daemon.config import Config
from daemon.cycle import Cycle
from daemon.events import Event, SwitchEnded
from daemon.journal import AnyRow, get, now
from daemon.serving import Serving
from daemon.sources import Sources
from daemon.withdrawal import IS_EARLY, was_taken_back
from policies.facts import Requirement
from policies.steps import Finish, Promote

log = logging.getLogger("relearn")


class Worker:
    """The running cycle, if there is one."""

    def __init__(
        self,
        config: Config,
        journal: Engine,
        put: Callable[[Event], None],
        sources: Sources,
        serving: Serving,
        tell: Callable[[str], None],
    ) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.sources = sources
        self.serving = serving
        self.tell = tell  # that a cycle has ended, for the next decision
        self.cycle: Cycle | None = None
        self.leaving: dict[str, Child] = {}  # children that were asked to end: nothing starts beside them

    @property
    def busy(self) -> bool:
        return self.cycle is not None or bool(self.leaving)

    @property
    def child(self) -> Child | None:
        return self.cycle.child if self.cycle else None

    @property
    def measures(self) -> bool:
        """Whether something is measured, or waits for the machine to be."""
        return self.cycle is not None and self.cycle.measures

    def reconfigure(self, config: Config) -> None:
        """The next cycle goes by these settings; the running one takes of them what a restart would give it."""
        self.config = config
        if self.cycle is not None:
            self.cycle.reconfigure(config, self.serving.devices)

    def begin(self, cycle: int) -> None:
        self.cycle = Cycle(self.config, self.journal, cycle, self.put, self.serving.devices)
        log.info("cycle %d for %s begins", cycle, self.cycle.target)

    def recover(self) -> bool:
        """Goes on with a cycle that was begun before the daemon last ended, or a pause. False: there is none."""
        if self.cycle is not None:
            return False
        with self.journal.connect() as connection:
            begun = [row.id for row in _begun(connection) if not pauses.standing(connection, row.target)]
        if not begun:
            return False
        self.begin(begun[0])
        return True

    def rest(self) -> None:
        """Leaves the running cycle alone while its target is paused: what was trained stays, and goes on later.

        One whose promotion Triton may be loading is at its end, and comes to it.
        """
        if self.cycle is None:
            return
        with self.journal.connect() as connection:
            if not pauses.standing(connection, self.cycle.target) or self._is_loading(connection, self.cycle.id):
                return
        self.cycle.rest()
        if child := self.cycle.child:
            self.leaving[child.token] = child
        log.info("cycle %d for %s rests while it is paused", self.cycle.id, self.cycle.target)
        self.cycle = None

    def _is_loading(self, connection: Connection, cycle: int) -> bool:
        table = schema.promotions
        late = (table.c.cycle_id == cycle, ~IS_EARLY)
        return connection.execute(select(table.c.id).where(*late)).first() is not None

    def step(self, *, alone: bool = True) -> bool:
        """Starts what the cycle does next. False: it waits for a child, for Triton, for a retry, or to be alone."""
        if self.cycle is None or self.leaving:
            return False
        match self.cycle.advance(alone=alone):
            case Promote(artifact=artifact):
                return self._promote(artifact)
            case Finish(outcome=outcome, reason=reason):
                self._finish(outcome, reason)
                return True
            case _:
                self._watch_clock()
                return False

    def _promote(self, artifact: str) -> bool:
        assert self.cycle is not None
        with self.journal.begin() as connection:
            about, by = people.asked_about(connection, self.cycle.target)
            promotion = self.serving.request(
                connection,
                self.cycle.target,
                artifact,
                kind="promotion",
                by=by if about == artifact else "policy",
                cycle=self.cycle.id,
            )
        if promotion.state == "failed":
            self._finish("failed", f"promotion of {artifact}: {promotion.error}")
            return True
        self.serving.tend()
        return False

    def _finish(self, outcome: str, reason: str) -> None:
        assert self.cycle is not None
        self.cycle.finish(outcome, reason)
        log.info("cycle %d for %s: %s: %s", self.cycle.id, self.cycle.target, outcome, reason)
        self.tell(f"cycle {self.cycle.id} ended: {outcome}")
        self.cycle = None
        self.serving.tend()  # what was built again is served again

    def _watch_clock(self) -> None:
        assert self.cycle is not None
        if self.cycle.retry_at is not None:
            self.sources.fire_at(self.cycle.retry_at, "retry")
        elif self.cycle.child is not None:
            minutes = self.cycle.limit_minutes
            self.sources.fire_at(now() - self.cycle.child.worked + minutes * 60, "timeout")

    def hear(self, line: dict[str, Any]) -> None:
        assert self.cycle is not None
        self.cycle.spoke(line)

    def bury(self, status: int, last_words: str) -> None:
        assert self.cycle is not None
        words = self.cycle.ended(status, last_words)
        if status != 0:
            log.warning("cycle %d: a stage ended with status %d: %s", self.cycle.id, status, words[-800:])

    def left(self, token: str) -> bool:
        """Whether this was the end of a child that had been asked to end."""
        return self.leaving.pop(token, None) is not None

    def switched(self, event: SwitchEnded) -> None:
        with self.journal.connect() as connection:
            row = get(connection, schema.promotions, event.promotion)
        if was_taken_back(row):
            log.info("%s: version %d is not served: %s", row.target, row.version, event.error)
        elif event.error:
            log.error("%s: version %d is not served: %s", row.target, row.version, event.error)
        else:
            log.info("%s: version %d (%s) is served", row.target, row.version, row.artifact_id)

    def outdated(self, requirements: Mapping[str, Requirement]) -> str | None:
        """The target of the running cycle, where something else is asked of it now than the cycle judges by."""
        if self.cycle is None:
            return None
        asked = requirements.get(self.cycle.target)
        return None if asked == self.cycle.ground.requirement else self.cycle.target

    def spoiled(self) -> str | None:
        """The target of the running cycle, where an image of its snapshot was forgotten since it began."""
        if self.cycle is None:
            return None
        with self.journal.connect() as connection:
            return self.cycle.target if forget.forgotten_of(connection, self.cycle.rows) else None

    def interrupt(self, target: str, reason: str) -> None:
        """Ends the cycle of this target that runs, or rests."""
        cycle = self.cycle if self.cycle and self.cycle.target == target else self._resting(target)
        if cycle is None:
            return
        self.serving.withdraw(cycle.id, reason)
        cycle.interrupt(reason)
        if child := cycle.child:
            self.leaving[child.token] = child
        log.info("cycle %d for %s is interrupted: %s", cycle.id, target, reason)
        if cycle is self.cycle:
            self.cycle = None

    def _resting(self, target: str) -> Cycle | None:
        """The cycle of this target that was begun and rests."""
        with self.journal.connect() as connection:
            found = [row.id for row in _begun(connection) if row.target == target]
        return Cycle(self.config, self.journal, found[0], self.put, self.serving.devices) if found else None

    def stop_overdue(self) -> None:
        """Stops the child whose time is up; its attempt counts as failed. What waits for others uses up no time."""
        if self.cycle and (child := self.cycle.child) and child.worked >= self.cycle.limit_minutes * 60 - 1:
            self.cycle.timed_out = True
            child.stop(grace_seconds=5.0)


def _begun(connection: Connection) -> list[AnyRow]:
    cycles = schema.cycles
    return list(connection.execute(select(cycles).where(cycles.c.state == "running").order_by(cycles.c.id)))
