"""One Triton, made to serve what the journal says, by a thread of its own: it never holds up the loop, nor the others.

At rest each look asks the server for its index and statistics, and every instance for one recorded answer; the journal
is not opened. Whatever is not as it was leads to a round, which reads the journal anew: promotions that are under way
go on from their last finished step, and what should be served is compared with what is. A round may be cut off anywhere
and repeated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import OperationalError

from daemon import pauses, schema, servers, targets
from daemon.config import Config
from daemon.errors import ConfigError
from daemon.events import ArtifactLost, Event, SwitchEnded
from daemon.journal import AnyRow, claim, get, now
from daemon.looks import Looks
from daemon.settings import Triton as Settings
from daemon.wanted import Wanted
from daemon.withdrawal import EARLY, WITHDRAWABLE, WITHDRAWN
from deploy.fitness import forget, inspect
from deploy.repository import RepositoryError, check_versions
from deploy.switch import STEPS, Switch, SwitchFailed, is_lost, leave, mend, run_step, undo
from deploy.triton import Triton, TritonError, TritonRefused, TritonUnavailable, TritonUnfit

log = logging.getLogger("relearn")
promotions = schema.promotions
AWAY_SECONDS = 2.0  # between two looks for a server that is away
ROUND_SECONDS = 60.0  # between two comparisons of all that was recorded
SERVER, JOURNAL = ("server", ""), ("journal", "")  # whose trouble it is, beside ("target", its name)


class Keeper:
    """The thread of one server, and what it knows of it."""

    def __init__(
        self, config: Config, server: Settings, journal: Engine, put: Callable[[Event], None], tend: Callable[[], None]
    ) -> None:
        self.journal = journal
        self.put = put
        self.tend_all = tend
        self.wake = threading.Event()
        self._stop = threading.Event()
        self._edited: tuple[Config, Settings] | None = None
        self._unserved: set[int] = set()  # promotions that Triton cannot be given again, told once
        self._said: dict[tuple[str, str], str | None] = {}
        self._unwritten = False  # something that was to be told could not be written down in this round
        self._patience = 0.0  # seconds to the next round, while something of the last one failed
        self._configure(config, server)

    def _configure(self, config: Config, server: Settings) -> None:
        self.config = config
        self.server = server
        self.repository = config.repository_of(server.name)
        self.owner = str(config.workspace)  # of the marker that is laid there
        # Rows of a journal that knew one server name none: they are the first's.
        self.names = (server.name, "") if server is config.settings.triton[0] else (server.name,)
        self._triton: Triton | None = None
        self._version: str | None = None  # of the server, once it was found fit; None: it is to be looked at
        self._looks = Looks()
        self._wanted = Wanted(self.journal, config.state, self.put, self.names)
        self._round_due = 0.0

    def reconfigure(self, config: Config, server: Settings) -> None:
        """Goes on with these settings after the round at hand."""
        self._edited = config, server

    def run(self, after: Sequence[threading.Thread] = ()) -> None:
        """From the end of those threads until `stop`.

        A step at hand is cut off at the process's end: it can be repeated.
        """
        for thread in after:
            thread.join()
        while not self._stop.is_set():
            woken = self.wake.wait(self.pause())
            self.wake.clear()
            if self._stop.is_set():
                forget(self.repository, self.owner)
                return
            if edited := self._edited:
                self._edited = None
                forget(self.repository, self.owner)
                self._configure(*edited)
            if woken:  # what failed may do better now
                self._patience = 0.0
            try:
                if woken or self.look():
                    self._unwritten = False
                    self.round()
                if not self._unwritten:
                    self._say(JOURNAL, None, "the journal can be used again")
            except OperationalError as error:
                self._say(JOURNAL, f"the journal: {error.orig}")
            except Exception:  # a bug here must not end serving: the next round tries again
                log.exception("a comparison with Triton failed")

    def stop(self) -> None:
        self._stop.set()
        self.wake.set()

    def pause(self) -> float:
        """Seconds to the next look."""
        seconds = self.server.check_seconds
        return min(seconds, AWAY_SECONDS) if self._said.get(SERVER) else seconds

    # --- a look -------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Whether a round is due: something is not as it was, or it is time to compare everything."""
        if self._version is None or now() > self._round_due:
            return True
        try:
            triton = self._open()
            if self._looks.rests:
                if not self._looks.find_missing(triton):
                    return self._looks.find_changes(triton)
            elif triton.is_live():
                return False
        except RepositoryError:  # that of one target: its own turn in the round says so
            return True
        except (TritonError, OSError):
            pass
        self._version = None  # it may have been restarted, in another way even
        return True

    # --- a round ------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Goes on with what is under way, then compares what should be served with what is."""
        self._patience = min(max(2 * self._patience, self.server.check_seconds), ROUND_SECONDS)
        self._round_due = now() + self._patience  # unless all goes well
        under_way = self._rows("switching", "undoing", anywhere=True)
        try:
            waiting: set[str] = set()
            failed = 0
            for row in under_way:
                act = self._undo if row.state == "undoing" else self._switch
                mine = row.server in self.names and row.target not in waiting
                if not mine and row.state == "undoing":
                    continue  # that concerns its own server alone
                if not mine or not self._try(row, act):
                    waiting.add(row.target)  # a later promotion never overtakes an earlier one
                    failed += mine
            served = self._rows("serving")  # as it is after the switches
            self._looks.keep({row.id for row in served})
            failed += sum(not self._try(row, self._keep) for row in served)
            failed += sum(not self._try(row, self._leave) for row in self._rows("leaving"))
            if not (self._stop.is_set() or self._edited):  # else it knows no server by its new name
                for row, said in self._wanted.find_arrivals(self.server.name, self.config.server_names):
                    failed += not self._try(row, partial(self._wanted.ask_anew, why=said))
            self._fit()
            if not failed:
                self._patience, self._round_due = 0.0, now() + ROUND_SECONDS
        except (TritonError, RepositoryError, OSError) as error:
            self._version, self._patience = None, 0.0
            state = "away" if isinstance(error, TritonUnavailable) and not isinstance(error, TritonUnfit) else "unfit"
            self._note(partial(servers.note, self.journal, self.server.name, state, trouble=str(error)))
            if state == "unfit" or under_way or self._rows("serving"):  # else nobody misses it yet
                self._say(SERVER, str(error))

    def _rows(self, *states: str, anywhere: bool = False) -> Sequence[AnyRow]:
        mine = () if anywhere else (promotions.c.server.in_(self.names),)
        asked = select(promotions).where(promotions.c.state.in_(states), *mine).order_by(promotions.c.id)
        with self.journal.connect() as connection:
            return connection.execute(asked).all()

    def _try(self, row: AnyRow, act: Callable[[AnyRow], None]) -> bool:
        """One target's trouble is said (False) and leaves the others alone.

        It is written down where the target is served here: what is to come serves well elsewhere meanwhile. Raises
        TritonUnavailable: that is everyone's.
        """
        trouble = None
        try:
            act(row)
        except (RepositoryError, SwitchFailed, TritonRefused, OSError) as error:
            trouble = str(error)
        except OperationalError as error:
            self._miss(error)
            return False
        here = row.server in self.names
        relief = f"{row.target} is served as it should be again" if here else ""
        self._say(("target" if here else "arrival", f"{row.target} {row.version}"), trouble, relief)
        if here and row.state == "serving" and row.error != trouble:
            self._note(partial(self._write, row, error=trouble))
        return trouble is None

    def _switch(self, row: AnyRow) -> None:
        """Goes on with a promotion from its last finished step."""
        switch = self._describe(row)
        done = STEPS.index(row.step) + 1 if row.step else 0
        for step in STEPS[done:]:
            if step in WITHDRAWABLE and (self._waits_for_people(row) or self._has_another_aim(row)):
                return
            if step == "retire" and not self._served(row):  # the clients have it; what is left is tidying up
                self._undo(row)  # it was withdrawn meanwhile
                return
            try:
                triton = self._open() if step == "stage" else self._fit()
                log.debug("%s: %s", row.target, run_step(step, switch, triton))
            except (TritonUnavailable, RepositoryError, OSError) as error:
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

    def _has_another_aim(self, row: AnyRow) -> bool:
        """Whether a move is to end elsewhere, the constraint file being edited once more: it is withdrawn then."""
        if row.kind != "move":
            return False
        with self.journal.begin() as connection:
            place = servers.find_place(connection, row.target, self.config.server_names)
            if place in self.names:
                return False
            error = f"{WITHDRAWN} its constraint file names {place} now"
            claim(connection, promotions, row.id, "switching", "undoing", error=error)
        self._undo(row)
        return True

    def _served(self, row: AnyRow) -> bool:
        """It serves, the one before no longer. False: it is no longer switching."""
        with self.journal.begin() as connection:
            if not claim(connection, promotions, row.id, "switching", "serving", served=now()):
                return False
            others = (promotions.c.target == row.target, promotions.c.id != row.id)
            here = promotions.c.server.in_(self.names)
            elsewhere = promotions.c.server.in_([*self.config.server_names, ""]) & ~here
            for state, place in (("retired", here), ("leaving", elsewhere), ("retired", ~here & ~elsewhere)):
                earlier = (*others, promotions.c.state.in_(("serving", "leaving")), place)
                connection.execute(update(promotions).where(*earlier).values(state=state, ended=now()))
        self.put(SwitchEnded(row.id, None))
        self.tend_all()  # another server may have it to forget
        return True

    def _undo(self, row: AnyRow) -> None:
        with self.journal.connect() as connection:  # how far it has come since the row was read
            step = get(connection, promotions, row.id).step
        undo(self._describe(row), self._open(), loaded=step not in EARLY)
        with self.journal.begin() as connection:
            claim(connection, promotions, row.id, "undoing", "failed", ended=now())
            error = get(connection, promotions, row.id).error
        self.put(SwitchEnded(row.id, error))

    def _leave(self, row: AnyRow) -> None:
        """Another server answers with this target now: it goes from this one."""
        back = [other for other in self._rows("switching", "undoing") if other.target == row.target]
        if back:  # it comes again: what is here is replaced as any version is
            return
        log.info("%s", leave(self._describe(row), self._fit()))
        with self.journal.begin() as connection:
            claim(connection, promotions, row.id, "leaving", "retired")

    def _keep(self, row: AnyRow) -> None:
        """Mends a target that Triton does not serve as the journal says, and tidies up after its switch."""
        switch, triton = self._describe(row), self._fit()
        suspected, touched = self._looks.begin(row.id, switch)
        try:
            done = mend(switch, triton, suspected=suspected, touched=touched)
        except SwitchFailed:
            told = self._wanted.look_for_loss(row) or row.id in self._unserved
            self._unserved.add(row.id)
            if not told and is_lost(switch.artifact):  # known to be lost, and now nothing is left to serve it from
                self.put(ArtifactLost(row.target))
            raise
        self._unserved.discard(row.id)
        if done:
            log.warning("%s", done)
        if is_lost(switch.artifact):  # it serves on; what it is made of again is noticed now, not at Triton's next end
            self._wanted.look_for_loss(row)
        if row.step != "retire":
            run_step("retire", switch, triton)
            self._write(row, step="retire")
        self._looks.settle(row.id, switch)
        self._wanted.compare_settings(row, switch)
        check_versions(self.repository, row.target)

    # --- what it works with -----------------------------------------------------------------------------------------

    def _write(self, row: AnyRow, **values: str | None) -> bool:
        """Writes how far a promotion has come. False: it is no longer what it was."""
        alive = promotions.c.state.in_(("switching", "serving"))
        with self.journal.begin() as connection:
            written = update(promotions).where(promotions.c.id == row.id, alive).values(**values)
            return connection.execute(written).rowcount == 1

    def _describe(self, row: AnyRow) -> Switch:
        with self.journal.connect() as connection:
            asked = targets.requirements(connection).get(row.target)
            here = (promotions.c.target == row.target, promotions.c.server.in_(self.names))
            serving = (promotions.c.state == "serving", promotions.c.id != row.id)
            before = connection.execute(select(promotions.c.version).where(*here, *serving)).scalar()
        return servers.describe_switch(self.config, self.server, row, asked, before)

    def _open(self) -> Triton:
        if self._triton is None:
            try:
                self._triton = servers.connect(self.config, self.server)
            except (ConfigError, OSError) as error:  # a variable, or a file, that went since the start
                raise TritonUnfit(str(error)) from error
        return self._triton

    def _fit(self) -> Triton:
        """The connection, once the server was found fit. Raises TritonUnavailable, RepositoryError."""
        triton = self._open()
        if self._version is None:
            version = inspect(triton, self.repository, self.server.repository_seen, self.owner)
            if self._note(partial(servers.note, self.journal, self.server.name, "ready", version=version)):
                self._version = version  # else it is told at the next round
            self._say(SERVER, None, "Triton answers again")
        return triton

    def _note(self, write: Callable[[], object]) -> bool:
        """Whether what is only told could be written down: what serves is not left alone for a journal that is full."""
        try:
            write()
        except OperationalError as error:
            self._miss(error)
            return False
        return True

    def _miss(self, error: OperationalError) -> None:
        self._unwritten = True
        self._say(JOURNAL, f"the journal: {error.orig}")

    def _say(self, about: tuple[str, str], trouble: str | None, relief: str = "") -> None:
        """Logs a trouble once, not at every round, and once when it is over."""
        before = self._said.get(about)
        self._said[about] = trouble
        several = len(self.config.server_names) > 1 and about == SERVER
        whose = f"{self.server.name}: " if several else ""
        if trouble and trouble != before:
            seconds = self._patience if about[0] in ("target", "arrival") else self.pause()
            log.warning("%s%s; it is tried again in %g s", whose, trouble, seconds)
        elif before and not trouble and relief:
            log.info("%s%s", whose, relief)
