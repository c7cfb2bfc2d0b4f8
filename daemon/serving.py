"""What Triton should serve: the promotions that are asked for, and a keeper for each server (daemon/keeper.py)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, func, select, update

from daemon import schema, servers
from daemon.config import Config
from daemon.events import Event, SettingsEdited, SwitchEnded
from daemon.journal import AnyRow, add, change, get, now
from daemon.keeper import Keeper
from daemon.variants import devices, gpu_of
from daemon.withdrawal import IS_EARLY, TAKEN_BACK, WITHDRAWN
from deploy import repository

log = logging.getLogger("relearn")
promotions = schema.promotions


class Serving:
    """All servers, and the promotions that are asked of them."""

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.devices = _devices(config)
        self.keepers: list[Keeper] = []
        self._threads: dict[str, threading.Thread] = {}
        self._ending: list[threading.Thread] = []  # of servers that were taken out, with their last step
        self._hire()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The keepers' threads, for as long as the block lasts."""
        self._start()
        try:
            yield
        finally:
            for keeper in self.keepers:
                keeper.stop()

    def _hire(self) -> None:
        """A keeper for each server of the configuration: those that there are go on, with its settings."""
        known = {keeper.server.name: keeper for keeper in self.keepers}
        self.keepers = []
        for server in self.config.settings.triton:
            keeper = known.pop(server.name, None)
            if keeper is None:
                keeper = Keeper(self.config, server, self.journal, self.put, self.tend)
            else:
                keeper.reconfigure(self.config, server)
            self.keepers.append(keeper)
        for keeper in known.values():
            keeper.stop()

    def _start(self) -> None:
        """The threads that do not run yet. They wait for those that end: two must not take one promotion's steps."""
        names = [keeper.server.name for keeper in self.keepers]
        self._ending += [self._threads.pop(name) for name in set(self._threads) - set(names)]
        self._ending = [thread for thread in self._ending if thread.is_alive()]
        for keeper in self.keepers:
            if keeper.server.name not in self._threads:
                name = f"serving {keeper.server.name}"
                thread = threading.Thread(target=keeper.run, args=(list(self._ending),), name=name, daemon=True)
                self._threads[keeper.server.name] = thread
                thread.start()

    def settle(self, config: Config) -> None:
        """Writes down which of its servers has what, where the journal names one that is not among them.

        One that knew no names meant the first. One that is called otherwise now is known by what lies in its
        repository. What lies nowhere is left where it was, and is brought to where it is to be served by a switch.
        """
        names = config.server_names
        ended = []
        with self.journal.begin() as connection:
            servers.forget_others(connection, names)
            connection.execute(update(promotions).where(promotions.c.server == "").values(server=names[0]))
            lost = (
                promotions.c.server.not_in(names),
                promotions.c.state.in_(("switching", "serving", "undoing", "leaving")),
            )
            for row in connection.execute(select(promotions).where(*lost)).all():
                if name := _find_holder(config, row):
                    log.info("%s: what the server %s had is what %s has", row.target, row.server, name)
                    change(connection, promotions, row.id, server=name)
                    continue
                said = f"config.toml names no server {row.server!r} any more"
                log.warning("%s: %s: what it serves there is left as it is", row.target, said)
                if row.state in ("switching", "undoing"):
                    change(connection, promotions, row.id, state="failed", error=said, ended=now())
                    ended.append(SwitchEnded(row.id, said))
        for event in ended:
            self.put(event)

    def reconfigure(self, config: Config) -> None:
        """What is served, and where, is compared with these settings from now on."""
        self.settle(config)  # before anything else: a journal that cannot be written leaves all as it was
        self.config, self.devices = config, _devices(config)
        self._hire()
        self._start()
        self.tend()

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
        verdict_id: int | None = None,
    ) -> AnyRow:
        """The promotion of an artifact to a target: the one that this cycle asked for already, or a new one.

        reason: where it is not the verdict's. verdict_id: where it is not of this cycle.
        """
        if cycle is not None:
            mine = (promotions.c.cycle_id == cycle, promotions.c.artifact_id == artifact)
            if row := connection.execute(select(promotions).where(*mine)).first():
                return row
        table = schema.verdicts
        said = (table.c.cycle_id == cycle) & (table.c.artifact_id == artifact)
        which = said if verdict_id is None else table.c.id == verdict_id
        verdict = connection.execute(select(table).where(which)).first()
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
            reason=reason or (verdict.reason if verdict else f"{kind} by {by}"),
            by=by,
            started=now(),
        )
        return get(connection, promotions, id_)

    def renew(self, event: SettingsEdited) -> None:
        """Has the champion switched to itself, under a new version, with the settings and at the server in force."""
        with self.journal.begin() as connection:
            row = get(connection, promotions, event.promotion)
            place = self._server_for(connection, row.target)
            busy = (promotions.c.state == "switching") | (
                (promotions.c.state == "undoing") & (promotions.c.server == place)
            )
            under_way = select(promotions.c.id).where(promotions.c.target == row.target, busy)
            if row.state != "serving" or connection.execute(under_way).first():
                return
            here = row.server or self.config.server_names[0]
            self.request(
                connection,
                row.target,
                row.artifact_id,
                kind="settings" if place == here else "move",
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
        with self.journal.begin() as connection:
            connection.execute(
                update(promotions)
                .where(promotions.c.cycle_id == cycle, promotions.c.state == "switching", IS_EARLY)
                .values(state="undoing", error=f"{WITHDRAWN} {reason}")
            )
        self.tend()

    def take_back(self, connection: Connection, row: AnyRow, by: str) -> bool:
        """A person takes back a promotion under way. False: Triton may be loading it, so that it goes on."""
        which = (promotions.c.id == row.id, promotions.c.state == "switching", IS_EARLY)  # the keeper may have gone on
        values = {"state": "undoing", "error": f"{TAKEN_BACK} {by}"}
        return connection.execute(update(promotions).where(*which).values(**values)).rowcount == 1

    def _next_version(self, connection: Connection, target: str) -> int:
        highest = select(func.max(promotions.c.version)).where(promotions.c.target == target)
        journalled = connection.execute(highest).scalar() or 0
        taken = [number for keeper in self.keepers for number in repository.numbers(keeper.repository, target)]
        return max([journalled, *taken]) + 1

    def _server_for(self, connection: Connection, target: str) -> str:
        return servers.find_place(connection, target, self.config.server_names)


def _find_holder(config: Config, row: AnyRow) -> str | None:
    """The server in whose repository this promotion's version lies: no other has its number."""
    holds = (n for n in config.server_names if row.version in repository.versions(config.repository_of(n), row.target))
    return next(holds, None)


def _devices(config: Config) -> dict[str, str]:
    settings = config.settings
    return devices(settings.compute.serve_threads, gpu_of(settings.model_dump(mode="json")))
