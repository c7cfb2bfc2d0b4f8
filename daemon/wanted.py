"""What is served, and wanted otherwise: settings or servers that were edited since, artifacts that were lost."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import Engine, select

from daemon import schema, targets
from daemon.events import ArtifactLost, Event, SettingsEdited
from daemon.journal import AnyRow, get, now
from daemon.stock import find_damage
from deploy import repository
from deploy.switch import Switch, SwitchFailed

promotions = schema.promotions
REFUSED_SECONDS = 600.0  # after which settings that Triton did not take are tried again


class Wanted:
    """The comparison for one server, whose promotions go by any of `names`."""

    def __init__(self, journal: Engine, state: Path, put: Callable[[Event], None], names: Collection[str]) -> None:
        self.journal = journal
        self.state = state
        self.put = put
        self.names = names

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

    def find_arrivals(self, name: str) -> list[AnyRow]:
        """What another server serves and the server of this name is to."""
        elsewhere = (promotions.c.state == "serving", promotions.c.server.not_in(self.names))
        with self.journal.connect() as connection:
            rows = connection.execute(select(promotions).where(*elsewhere)).all()
            asked = targets.requirements(connection) if rows else {}
        return [row for row in rows if row.target in asked and asked[row.target].server == name]

    def ask_anew(self, row: AnyRow, why: str) -> None:
        """Tells the loop to switch the champion to itself. Raises SwitchFailed where Triton has refused that."""
        with self.journal.connect() as connection:
            gone = get(connection, schema.artifacts, row.artifact_id).gone is not None
            unmanaged = row.target not in targets.requirements(connection)
            refused = connection.execute(
                select(promotions.c.error)
                .where(
                    promotions.c.target == row.target,
                    promotions.c.kind.in_(("settings", "move")),
                    promotions.c.server.in_(self.names),
                    promotions.c.state == "failed",
                    promotions.c.ended > now() - REFUSED_SECONDS,
                )
                .order_by(promotions.c.id.desc())
            ).scalar()
        if gone or unmanaged:
            return
        if refused is not None:
            raise SwitchFailed(f"{why}; Triton did not take it: {refused}")
        self.put(SettingsEdited(row.id, why))

    def look_for_loss(self, row: AnyRow) -> bool:
        """Tells the loop, once, where an artifact has to be built again before it can be served. False: it has not."""
        with self.journal.begin() as connection:
            known = get(connection, schema.artifacts, row.artifact_id).gone is not None
            lost = not known and find_damage(connection, self.state, row.artifact_id)
        if lost:
            self.put(ArtifactLost(row.target))
        return bool(lost)
