"""What Triton should serve: the promotions that are asked for, and a keeper for each server (daemon/keeper.py)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, func, select, update

from daemon import schema, servers, targets
from daemon.config import Config
from daemon.events import Event, SettingsEdited, SwitchEnded
from daemon.journal import AnyRow, add, change, get, now
from daemon.keeper import Keeper
from daemon.variants import devices, gpu_of
from deploy import repository

log = logging.getLogger("relearn")
promotions = schema.promotions


class Serving:
    """All servers, and the promotions that are asked of them."""

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        settings = config.settings
        self.devices = devices(settings.compute.serve_threads, gpu_of(settings.model_dump(mode="json")))
        self.keepers = [Keeper(config, server, journal, put, self.tend) for server in settings.triton]

    @contextmanager
    def running(self) -> Iterator[None]:
        """The keepers' threads, for as long as the block lasts."""
        self._settle_names()
        for keeper in self.keepers:
            threading.Thread(target=keeper.run, name=f"serving {keeper.server.name}", daemon=True).start()
        try:
            yield
        finally:
            for keeper in self.keepers:
                keeper.stop()

    def _settle_names(self) -> None:
        """Gives promotions of a journal that knew one server its name; says what lies at one that is not known."""
        names = self.config.server_names
        servers.forget_others(self.journal, names)
        with self.journal.begin() as connection:
            connection.execute(update(promotions).where(promotions.c.server == "").values(server=names[0]))
            lost = (promotions.c.server.not_in(names), promotions.c.state.in_(("switching", "serving", "undoing")))
            for row in connection.execute(select(promotions).where(*lost)).all():
                said = f"config.toml names no server {row.server!r} any more"
                log.warning("%s: %s: what it serves there is left as it is", row.target, said)
                if row.state != "serving":
                    change(connection, promotions, row.id, state="failed", error=said, ended=now())
                    self.put(SwitchEnded(row.id, said))

    def tend(self) -> None:
        """Asks for a round of each server now."""
        for keeper in self.keepers:
            keeper.wake.set()

    def request(
        self,
        connection: Connection,
        target: str,
        artifact: str,
        *,
        kind: str,
        by: str,
        cycle: int | None,
        reason: str = "",
    ) -> AnyRow:
        """The promotion of an artifact to a target: the one that this cycle asked for already, or a new one.

        reason: where there is no verdict that says it.
        """
        if cycle is not None:
            mine = (promotions.c.cycle_id == cycle, promotions.c.artifact_id == artifact)
            if row := connection.execute(select(promotions).where(*mine)).first():
                return row
        table = schema.verdicts
        verdict = connection.execute(
            select(table).where(table.c.cycle_id == cycle, table.c.artifact_id == artifact)
        ).first()
        get(connection, schema.artifacts, artifact)
        id_ = add(
            connection,
            promotions,
            target=target,
            artifact_id=artifact,
            cycle_id=cycle,
            verdict_id=verdict.id if verdict else None,
            kind=kind,
            version=self._next_version(connection, target),
            server=self._server_for(connection, target),
            state="switching",
            reason=verdict.reason if verdict else reason or f"{kind} by {by}",
            by=by,
            started=now(),
        )
        return get(connection, promotions, id_)

    def renew(self, event: SettingsEdited) -> None:
        """Has the champion switched to itself, under a new version, with the settings and at the server in force."""
        with self.journal.begin() as connection:
            row = get(connection, promotions, event.promotion)
            switching = (promotions.c.target == row.target, promotions.c.state.in_(("switching", "undoing")))
            if row.state != "serving" or connection.execute(select(promotions.c.id).where(*switching)).first():
                return
            here = row.server or self.config.server_names[0]
            self.request(
                connection,
                row.target,
                row.artifact_id,
                kind="settings" if self._server_for(connection, row.target) == here else "move",
                by="policy",
                cycle=None,
                reason=event.reason,
            )
        log.info("%s: %s", row.target, event.reason)
        self.tend()

    def withdraw(self, cycle: int, reason: str = "the constraints changed") -> None:
        """Takes back the promotions of a cycle that no client can have met; what was begun is undone.

        One that Triton may be loading goes on: to call clients back from it would fail requests on their way.
        """
        early = promotions.c.step.is_(None) | promotions.c.step.in_(("stage", "probe"))
        with self.journal.begin() as connection:
            connection.execute(
                update(promotions)
                .where(promotions.c.cycle_id == cycle, promotions.c.state == "switching", early)
                .values(state="undoing", error=f"withdrawn: {reason}")
            )
        self.tend()

    def _next_version(self, connection: Connection, target: str) -> int:
        highest = select(func.max(promotions.c.version)).where(promotions.c.target == target)
        journalled = connection.execute(highest).scalar() or 0
        on_disk = [version for keeper in self.keepers for version in repository.versions(keeper.repository, target)]
        return max([journalled, *on_disk]) + 1

    def _server_for(self, connection: Connection, target: str) -> str:
        """Where a target is to be served: as its constraint file says, else where it is, else the first."""
        asked = targets.requirements(connection).get(target)
        champion = targets.champion(connection, target)
        names = self.config.server_names
        wanted = [asked.server if asked else "", champion.server if champion else ""]
        return next((name for name in wanted if name in names), names[0])
