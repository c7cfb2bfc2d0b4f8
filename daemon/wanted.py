"""What is served, and wanted otherwise: settings or servers that were edited since, artifacts that were lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import Engine, select

from daemon import schema, servers, targets
from daemon.events import ArtifactLost, Event, SettingsEdited
from daemon.journal import AnyRow, get, now
from daemon.stock import find_damage
from daemon.withdrawal import RENEWALS, was_taken_back, was_unwanted
from deploy import repository
from deploy.switch import Switch, SwitchFailed

promotions = schema.promotions
REFUSED_SECONDS = 600.0  # after which what Triton did not take is tried again; twice as long after each refusal …
DAY = 86_400.0  # … up to this


class Wanted:
    """The comparison for one server, whose promotions go by any of `names`."""

    def __init__(self, journal: Engine, state: Path, put: Callable[[Event], None], names: Collection[str]) -> None:
        self.journal = journal
        self.state = state
        self.put = put
        self.names = names
        self.since = now()  # with a start, or other settings, what was refused is tried anew

    def compare_settings(self, row: AnyRow, switch: Switch) -> None:
        """Tells the loop where batch size, instances or threads were edited since the switch to what is served.

        Raises SwitchFailed where Triton has not taken them.
        """
        manifest = repository.versions(switch.repository, row.target).get(row.version)
        if manifest is None:  # its folder was removed: it serves on from Triton's memory, and is made anew when lost
            return
        given = manifest.get("serving", {})
        edited = [f"{k} {given.get(k)} -> {v}" for k, v in asdict(switch.serving).items() if given.get(k) != v]
        if edited:
            self.ask_anew(row, f"how it is served was edited: {', '.join(edited)}")

    def find_arrivals(self, name: str, names: Sequence[str]) -> list[tuple[AnyRow, str]]:
        """What another server serves, or one that is not configured any more, and this one is to; and why.

        names: of all servers there are.
        """
        elsewhere = (promotions.c.state == "serving", promotions.c.server.not_in(self.names))
        with self.journal.connect() as connection:
            rows = connection.execute(select(promotions).where(*elsewhere)).all()
            rows = [row for row in rows if servers.find_place(connection, row.target, names) == name]
        found = []
        for row in rows:
            before = row.server or names[0]
            because = "as its constraint file says" if before in names else f"since there is no {before} any more"
            found.append((row, f"it moves from {before} to {name}, {because}"))
        return found

    def ask_anew(self, row: AnyRow, why: str) -> None:
        """Tells the loop to switch the champion to itself.

        Raises SwitchFailed where Triton has refused just that, also where it is tried again now: only a switch that
        ends well ends the trouble. What a person took back waits for a start, or a reload.
        """
        with self.journal.connect() as connection:
            gone = get(connection, schema.artifacts, row.artifact_id).gone is not None
            unmanaged = row.target not in targets.requirements(connection)
            failed: Sequence[AnyRow] = connection.execute(
                select(promotions)
                .where(
                    promotions.c.id > row.id,
                    promotions.c.target == row.target,
                    promotions.c.artifact_id == row.artifact_id,
                    promotions.c.kind.in_(RENEWALS),
                    promotions.c.reason == why,
                    promotions.c.server.in_(self.names),
                    promotions.c.state == "failed",
                )
                .order_by(promotions.c.id.desc())
            ).all()
        if gone or unmanaged or any(was_taken_back(row) and row.ended >= self.since for row in failed[:1]):
            return
        refused = [row for row in failed if not was_unwanted(row)]
        wait = min(REFUSED_SECONDS * 2 ** min(len(refused) - 1, 10), DAY) if refused else 0.0
        if not refused or refused[0].ended < self.since or now() > refused[0].ended + wait:
            self.put(SettingsEdited(row.id, why))
        if refused:
            raise SwitchFailed(f"{why}; Triton did not take it: {refused[0].error}")

    def look_for_loss(self, row: AnyRow) -> bool:
        """Tells the loop, once, where an artifact has to be built again before it can be served. False: it has not."""
        with self.journal.begin() as connection:
            known = get(connection, schema.artifacts, row.artifact_id).gone is not None
            lost = not known and find_damage(connection, self.state, row.artifact_id)
        if lost:
            self.put(ArtifactLost(row.target))
        return bool(lost)
