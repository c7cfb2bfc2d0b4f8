"""What Triton should serve, made so by a thread of its own: a slow or absent server never holds up the loop.

Every round is read from the journal anew: promotions that are under way go on from their last finished step, and
what should be served is compared with what is. A round may be cut off anywhere and repeated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import Connection, Engine, func, select, update

from daemon import pauses, schema, targets
from daemon.config import Config
from daemon.events import ArtifactLost, Event, SettingsEdited, SwitchEnded
from daemon.journal import AnyRow, add, claim, get, now
from daemon.stock import artifact_folder, find_damage
from daemon.variants import devices, gpu_of
from deploy import repository
from deploy.artifact import ArtifactError, read_manifest
from deploy.config_pbtxt import Flavour
from deploy.config_pbtxt import Serving as ServedHow
from deploy.repository import RepositoryError
from deploy.switch import STEPS, Switch, SwitchFailed, is_lost, mend, run_step, undo
from deploy.triton import Triton, TritonRefused, TritonUnavailable

log = logging.getLogger("relearn")
promotions = schema.promotions
WITHDRAWABLE = ("stage", "probe", "put")  # steps before which no client can have met what is promoted
REFUSED_SECONDS = 600.0  # after which settings that Triton did not take are tried again


class Serving:
    """The thread that speaks to Triton, and the promotions that are asked of it."""

    def __init__(self, config: Config, journal: Engine, put: Callable[[Event], None]) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.devices = _devices(config)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._triton: Triton | None = None
        self._connected_by: tuple[str, float] | None = None  # the settings that the connection was made by
        self._unserved: set[int] = set()  # promotions that Triton cannot be given again, told once
        self._failures: dict[int, int] = {}  # of requests, by promotion, as Triton counts them
        self._said: dict[str, str | None] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """The thread, for as long as the block lasts. A step at hand is cut off at its end: it can be repeated."""
        threading.Thread(target=self._run, name="serving", daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()
            self._wake.set()

    def reconfigure(self, config: Config) -> None:
        """What is served is compared with these settings from now on."""
        self.config, self.devices = config, _devices(config)
        self.tend()

    def tend(self) -> None:
        """Asks for a round now."""
        self._wake.set()

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
            state="switching",
            reason=reason or (verdict.reason if verdict else f"{kind} by {by}"),
            by=by,
            started=now(),
        )
        return get(connection, promotions, id_)

    def renew(self, event: SettingsEdited) -> None:
        """Has the champion switched to itself, under a new version, with the settings in force."""
        with self.journal.begin() as connection:
            row = get(connection, promotions, event.promotion)
            switching = (promotions.c.target == row.target, promotions.c.state.in_(("switching", "undoing")))
            if row.state != "serving" or connection.execute(select(promotions.c.id).where(*switching)).first():
                return
            self.request(
                connection,
                row.target,
                row.artifact_id,
                kind="settings",
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
        early = promotions.c.step.is_(None) | promotions.c.step.in_(WITHDRAWABLE[:-1])
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
        on_disk = repository.versions(self.config.repository, target)
        return max([journalled, *on_disk]) + 1

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._round()
            except Exception:  # a bug here must not end serving: the next round tries again
                log.exception("a comparison with Triton failed")

    def _round(self) -> None:
        with self.journal.connect() as connection:
            under_way = list(
                connection.execute(
                    select(promotions).where(promotions.c.state.in_(("switching", "undoing"))).order_by(promotions.c.id)
                )
            )
        try:
            waiting: set[str] = set()
            for row in under_way:
                act = self._undo if row.state == "undoing" else self._switch
                if row.target in waiting or not self._try(row, act):
                    waiting.add(row.target)  # a later promotion never overtakes an earlier one
            with self.journal.connect() as connection:  # as it is after the switches
                served = list(connection.execute(select(promotions).where(promotions.c.state == "serving")))
            for row in served:
                self._try(row, self._keep)
            if served or under_way:
                self._say("triton", None, "Triton answers again")
        except TritonUnavailable as error:
            self._say("triton", str(error))

    def _try(self, row: AnyRow, act: Callable[[AnyRow], None]) -> bool:
        """One target's trouble is said (False) and leaves the others alone.

        Raises TritonUnavailable: that is everyone's.
        """
        try:
            act(row)
            self._say(row.target, None, f"{row.target} is served as it should be again")
            trouble = None
        except (RepositoryError, SwitchFailed) as error:
            self._say(row.target, str(error))
            trouble = str(error)
        if row.state == "serving" and row.error != trouble:
            self._write(row, error=trouble)
        return trouble is None

    def _switch(self, row: AnyRow) -> None:
        """Goes on with a promotion from its last finished step."""
        switch = self._describe(row)
        done = STEPS.index(row.step) + 1 if row.step else 0
        for step in STEPS[done:]:
            if step in WITHDRAWABLE and self._waits_for_people(row):
                return
            if step == "retire" and not self._served(row):  # the clients have it; what is left is tidying up
                self._undo(row)  # it was withdrawn meanwhile
                return
            try:
                log.debug("%s: %s", row.target, run_step(step, switch, self._connection()))
            except (TritonUnavailable, RepositoryError) as error:
                self._write(row, error=f"waits: {error}")
                raise
            except SwitchFailed as error:
                if step == "retire":  # it serves already, and nothing else does: `_keep` tidies up
                    raise
                with self.journal.begin() as connection:
                    claim(connection, promotions, row.id, "switching", "undoing", error=str(error))
                self._undo(row)
                return
            if not self._write(row, step=step, error=None):
                self._undo(row)  # it was withdrawn meanwhile
                return

    def _waits_for_people(self, row: AnyRow) -> bool:
        """Whether the policy's promotion is held up by a pause. What Triton may be loading goes through to its end."""
        if row.by != "policy" or row.kind != "promotion":
            return False
        with self.journal.connect() as connection:
            paused = pauses.tell(connection, row.target)
        if paused:
            self._write(row, error=f"waits: {paused}")
        return paused is not None

    def _served(self, row: AnyRow) -> bool:
        """It serves, the one before no longer. False: it is no longer switching."""
        with self.journal.begin() as connection:
            if not claim(connection, promotions, row.id, "switching", "serving", served=now()):
                return False
            earlier = (
                promotions.c.target == row.target,
                promotions.c.state == "serving",
                promotions.c.id != row.id,
            )
            connection.execute(update(promotions).where(*earlier).values(state="retired", ended=now()))
        self.put(SwitchEnded(row.id, None))
        return True

    def _undo(self, row: AnyRow) -> None:
        undo(self._describe(row), self._connection())
        with self.journal.begin() as connection:
            claim(connection, promotions, row.id, "undoing", "failed", ended=now())
            error = get(connection, promotions, row.id).error
        self.put(SwitchEnded(row.id, error))

    def _keep(self, row: AnyRow) -> None:
        """Mends a target that Triton does not serve as the journal says, and tidies up after its switch."""
        switch = self._describe(row)
        try:
            done = mend(switch, self._connection(), suspected=self._fails(row))
        except SwitchFailed:
            told = self._look_for_loss(row) or row.id in self._unserved
            self._unserved.add(row.id)
            if not told and is_lost(switch.artifact):  # known to be lost, and now nothing is left to serve it from
                self.put(ArtifactLost(row.target))
            raise
        self._unserved.discard(row.id)
        if done:
            log.warning("%s", done)
        if is_lost(switch.artifact):  # it serves on; what it is made of again is noticed now, not at Triton's next end
            self._look_for_loss(row)
        if row.step != "retire":
            run_step("retire", switch, self._connection())
            self._write(row, step="retire")
        self._compare_settings(row, switch.serving)

    def _fails(self, row: AnyRow) -> bool:
        """Whether requests to it have failed since the last look: one of its instances may be dead."""
        try:
            count = self._connection().count_failures(row.target, row.version)
        except TritonRefused:  # it is not loaded
            return False
        before = self._failures.get(row.id, count)
        self._failures[row.id] = count
        return count > before

    def _compare_settings(self, row: AnyRow, wanted: ServedHow) -> None:
        """Tells the loop where batch size, instances or threads were edited since the switch to what is served."""
        manifest = repository.versions(self.config.repository, row.target).get(row.version)
        if manifest is None:  # its folder was removed: it serves on from Triton's memory, and is made anew when lost
            return
        given = manifest.get("serving", {})
        edited = [f"{k} {given.get(k)} -> {v}" for k, v in asdict(wanted).items() if given.get(k) != v]
        if not edited:
            return
        how = f"how it is served was edited: {', '.join(edited)}"
        with self.journal.connect() as connection:
            gone = get(connection, schema.artifacts, row.artifact_id).gone is not None
            unmanaged = row.target not in targets.requirements(connection)
            refused = connection.execute(
                select(promotions.c.error)
                .where(
                    promotions.c.target == row.target,
                    promotions.c.kind == "settings",
                    promotions.c.state == "failed",
                    promotions.c.ended > now() - REFUSED_SECONDS,
                )
                .order_by(promotions.c.id.desc())
            ).scalar()
        if gone or unmanaged:
            return
        if refused is not None:
            raise SwitchFailed(f"{how}; Triton did not take it: {refused}")
        self.put(SettingsEdited(row.id, how))

    def _look_for_loss(self, row: AnyRow) -> bool:
        """Tells the loop, once, where an artifact has to be built again before it can be served. False: it has not."""
        with self.journal.begin() as connection:
            known = get(connection, schema.artifacts, row.artifact_id).gone is not None
            lost = not known and find_damage(connection, self.config.state, row.artifact_id)
        if lost:
            self.put(ArtifactLost(row.target))
        return bool(lost)

    def _write(self, row: AnyRow, **values: str | None) -> bool:
        """Writes how far a promotion has come. False: it is no longer what it was."""
        alive = promotions.c.state.in_(("switching", "serving"))
        with self.journal.begin() as connection:
            written = update(promotions).where(promotions.c.id == row.id, alive).values(**values)
            return connection.execute(written).rowcount == 1

    def _describe(self, row: AnyRow) -> Switch:
        settings = self.config.settings
        with self.journal.connect() as connection:
            asked = targets.requirements(connection).get(row.target)
            before = connection.execute(
                select(promotions.c.version).where(
                    promotions.c.target == row.target,
                    promotions.c.state == "serving",
                    promotions.c.id != row.id,
                )
            ).scalar()
        artifact = artifact_folder(self.config.state, row.artifact_id)
        return Switch(
            repository=self.config.repository,
            target=row.target,
            artifact=artifact,
            version=row.version,
            before=before,
            serving=ServedHow(
                flavour=self._flavour(row, artifact),
                max_batch_size=max(settings.triton.max_batch_size, asked.batch_size if asked else 1),
                instances=settings.triton.instances,
                threads=settings.compute.serve_threads,
            ),
        )

    def _flavour(self, row: AnyRow, folder: Path) -> Flavour:
        """How Triton is to run the artifact: by the Python backend, or by its engine's own. One that is gone stays."""
        if self.config.settings.triton.flavour == "python":
            return "python"
        try:
            manifest = read_manifest(folder)
        except ArtifactError:
            manifest = repository.versions(self.config.repository, row.target).get(row.version, {}).get("serving", {})
        flavour: Flavour = manifest.get("flavour", "python")
        return flavour

    def _connection(self) -> Triton:
        triton = self.config.settings.triton
        by = (triton.url, triton.timeout_seconds)
        if self._triton is None or by != self._connected_by:
            self._triton, self._connected_by = Triton(triton.url, timeout=triton.timeout_seconds), by
        return self._triton

    def _say(self, about: str, trouble: str | None, relief: str = "") -> None:
        """Logs a trouble once, not at every round, and once when it is over."""
        before = self._said.get(about)
        self._said[about] = trouble
        if trouble and trouble != before:
            log.warning("%s; it is tried again every %g s", trouble, self.config.settings.triton.check_seconds)
        elif before and not trouble and relief:
            log.info(relief)


def _devices(config: Config) -> dict[str, str]:
    settings = config.settings
    return devices(settings.compute.serve_threads, gpu_of(settings.model_dump(mode="json")))
