"""The daemon: one loop over one queue of events. Sources fill it, lanes do the work, children the heavy part.

reader     drops into samples            observer   the champion's answers to new samples
auditor    labels that are wrong         drift      images that look different
worker     the running cycle             serving    what Triton should serve (a thread of its own)
sweeper    what leaves the state folder     couriers   who is told of what happens (a thread each)
"""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import sys
from queue import Empty, SimpleQueue

from sqlalchemy.exc import OperationalError

from daemon import configurations, decisions, intake, lost_copies, memory, people, targets
from daemon.auditor import Auditor
from daemon.children import Child
from daemon.config import Config
from daemon.constraint_file import take_in
from daemon.couriers import Couriers
from daemon.drift_watch import DriftWatch
from daemon.events import (
    ArtifactLost,
    ChildEnded,
    ChildSpoke,
    ChoreEnded,
    ConfigTouched,
    ConstraintsTouched,
    DropSettled,
    Event,
    ImagesComing,
    PersonAsked,
    SettingsEdited,
    SourceFailed,
    Stop,
    SwitchEnded,
    TimerFired,
)
from daemon.journal import migrate_apart, now, open_journal
from daemon.lock import locked
from daemon.observer import Observer
from daemon.reader import Reader
from daemon.serving import Serving
from daemon.sources import Sources, running
from daemon.sweeper import Sweeper
from daemon.systemd import Supervisor
from daemon.worker import Worker

Lane = Reader | Observer | Auditor | DriftWatch | Worker

log = logging.getLogger("relearn")
TROUBLE_SECONDS = 30.0  # after which it is tried again
PATIENCE_SECONDS = 300.0  # for a copy that goes on: what has come of it by then is decided on
QUIET_SECONDS = 5.0  # without an event: what was done is over, or a child is at it for long
STOP_SECONDS = 8.0  # after SIGTERM all children are gone; ten are promised


class Daemon:
    """All lanes and what passes between them; nothing that a restart would not find again in the journal."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.journal = open_journal(config.state, migrate=True)
        self.queue: SimpleQueue[Event] = SimpleQueue()
        self.drops: list[str] = []  # what the next decision answers: what came
        self.because: list[str] = []  # and all else, which waits for nothing that is still coming
        self.drops_since = 0.0
        self.recovered = False
        self.worked = True  # since memory was last given back
        self.suspects: set[bytes] = set()  # samples whose copies a stage could not use
        self.trouble: str | None = None  # what the daemon met last, and is not over yet
        self.owed: str | None = None  # who asked for a reload that could not be done to its end
        self.halfway = False  # some parts go by other settings than `config`
        self.stopping = False
        put, tell = self.queue.put, self.because.append
        self.sources = Sources(config, self.queue)
        self.serving = Serving(config, self.journal, put)
        self.couriers = Couriers(config, self.journal)
        self.supervisor = Supervisor()
        self.reader = Reader(config, self.journal, put, self.sources, self.brought)
        self.observer = Observer(config, self.journal, put)
        self.auditor = Auditor(config, self.journal, put)
        self.drift_watch = DriftWatch(config, self.journal, put)
        self.worker = Worker(config, self.journal, put, self.sources, self.serving, tell)
        self.sweeper = Sweeper(config, self.journal, put, self.sources)
        self.lanes: tuple[Lane, ...] = (self.reader, self.observer, self.auditor, self.drift_watch, self.worker)

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT. What is unfinished then goes on at the next start."""
        self.queue.put(TimerFired("start"))  # before anything that the sources say
        with running(self.sources), self.serving.running(), self.couriers.running():
            if self.supervisor.seconds:
                self.sources.fire_every(self.supervisor.seconds, "watchdog")
            while not self.stopping and not isinstance(event := self.wait(), Stop):
                try:
                    self.handle(event)
                    self.work()
                    if event == TimerFired("after trouble"):
                        self.get_over()
                except (OSError, OperationalError) as error:
                    self.bear(error)
                self.couriers.wake()
                self.supervisor.tell(self.describe(), ready=self.recovered)
            self.supervisor.stopping()
            self.end_children()

    def wait(self) -> Event:
        """The next event. Once it is quiet after heavy work, what that left in memory goes back to the system."""
        if self.worked:
            with contextlib.suppress(Empty):
                return self.queue.get(timeout=QUIET_SECONDS)
            self.worked = False
            memory.give_back()
        return self.queue.get()

    def stop(self) -> None:
        """Ends `run` after what is at hand: what else waits in the queue is found again by the next start."""
        self.stopping = True
        self.queue.put(Stop())

    def bear(self, error: Exception) -> None:
        """A full disk or a file system that is away ends nothing: all is looked through again in a while."""
        what = str(error)
        if isinstance(error, OperationalError):
            what = f"the journal: {error.orig}"
            self.journal.dispose()  # what is wrong with a connection stays with it
        if what != self.trouble:  # each event meets it again meanwhile
            log.error("%s; all is looked through again every %g s", what, TROUBLE_SECONDS)
            if isinstance(error, OSError):  # else it could not be written now, and is told once it is over
                self.couriers.note("the daemon is in trouble", what)
        self.trouble = what
        self.sources.fire_at(now() + TROUBLE_SECONDS, "after trouble" if self.recovered else "start")

    def get_over(self) -> None:
        """All could be looked through: what was in the way is gone."""
        if self.trouble:
            log.info("it goes on; what was in the way is over: %s", self.trouble)
            self.couriers.note("the daemon goes on", f"what was in the way is over: {self.trouble}")
        self.trouble = None

    def describe(self) -> str:
        """What it does, for `systemctl status`."""
        if self.trouble:
            return f"trouble: {self.trouble}"
        if cycle := self.worker.cycle:
            return f"cycle {cycle.id} for {cycle.target}"
        number = len(self.config.folders)
        return "reading what has come" if self.reader.busy else f"watching {number} folder{'s' * (number > 1)}"

    def work(self) -> None:
        """Does all that can be done before the next event."""
        while not self.stopping and self.step():
            self.worked = True
            self.supervisor.alive()

    def step(self) -> bool:
        """Starts one thing. What measures has the machine to itself: nothing begins to compute beside it."""
        if not self.worker.measures and (self.reader.step() or self.observer.step() or self._look_closer()):
            return True
        alone = not any(children_of(lane) for lane in self.lanes if lane is not self.worker)
        if alone and not (self.reader.busy or self.worker.leaving or self.worker.measures) and self.sweeper.step():
            return True
        return self.decide() or self.worker.step(alone=alone and self.sweeper.chore is None)

    def _look_closer(self) -> bool:
        """Once all that has come is read its labels are audited, then drift is looked for in what was not held.

        Never both at once: each would make the other's embeddings again, beside it.
        """
        if self.reader.busy or self.observer.busy or self.auditor.child or self.drift_watch.child:
            return False
        return self.auditor.step() or self.drift_watch.step()

    def recover(self) -> None:
        """Finds what changed while no daemon ran, and goes on with what was unfinished."""
        self.serving.settle(self.config)
        self.couriers.register(self.config)
        with self.journal.begin() as connection:
            configurations.note(connection, "the daemon started", self.config.digest, self.config)
            if self.owed is None:
                configurations.answer(connection, "done", "the daemon was started anew with it")
        self.reader.recover()
        self.worker.recover()
        self.drop_spoiled()
        self.sweeper.recover()
        self.look_through("the daemon started")
        self.answer_people()
        self.do_owed()
        self.recovered = True
        self.get_over()

    def look_through(self, because: str) -> None:
        """Finds all that is otherwise than the journal has it, and decides on it."""
        intake.leave_folders(self.journal, but=self.config.folders)
        self.read_constraints()
        if self.config.settings.store.keep == "copy" and lost_copies.holds_links(self.config.state / "store"):
            self.look_for_lost_copies()
        self.reader.scan()
        self.observer.want()
        self.auditor.want()
        self.drift_watch.want()
        self.because.append(because)
        self.serving.tend()

    def reload(self, because: str) -> None:
        """Takes config.toml as it is now. Where that is refused nothing changes, and the log says what is to mend.

        Where a trouble is in the way it is owed, and done over once that is over; until then nobody is told that it is
        done.
        """
        self.owed = because
        with self.supervisor.reloading():
            with self.journal.begin() as connection:
                taken = configurations.take(connection, self.config, because)
            if taken or self.halfway:
                config, said = taken or (self.config, f"{self.config.file}: {configurations.STAND}")
                self.reconfigure(config)
                log.info("%s", said)
                with self.journal.begin() as connection:
                    configurations.answer(connection, "done", said)
                self.look_through("the configuration was read again")
        self.owed = None

    def do_owed(self) -> None:
        if self.owed:
            self.reload(self.owed)

    def reconfigure(self, config: Config) -> None:
        """Goes on with these settings, as if it had been started with them."""
        self.halfway = True
        # What serves goes before the lanes: it knows the devices.
        for part in (self.sources, self.serving, self.couriers, *self.lanes, self.sweeper):
            part.reconfigure(config)
        self.config, self.halfway = config, False
        log.setLevel(config.settings.log.level.upper())

    def handle(self, event: Event) -> None:
        match event:
            case DropSettled() if event.folder in self.config.folders:  # it may have been taken out meanwhile
                self.reader.waiting.append(event)
            case ImagesComing() if not self.worker.busy:  # what measures is alone, what trains needs the machine
                self.reader.get_ready(many=event.many)
            case ConstraintsTouched():
                self.read_constraints()
            case PersonAsked():
                self.answer_people()
            case TimerFired():
                self.time_out(event.name)
            case ChildSpoke() | ChildEnded():
                self.listen(event)
            case SwitchEnded():
                self.worker.switched(event)
                self.auditor.want()  # a first champion is what labels can be audited by
            case SettingsEdited():
                self.serving.renew(event)
            case ConfigTouched():
                self.reload("SIGHUP")
            case ChoreEnded():
                self.sweeper.ended(event)
                self.reader.outdated |= event.chore == "erase" and event.error is None
            case ArtifactLost():
                self.because.append(f"what {event.target} serves is lost")
            case SourceFailed():
                log.warning("%s", event.what)

    def time_out(self, timer: str) -> None:
        match timer:
            case "start":
                self.recover()
            case "rescan":
                self.reader.scan()
                self.read_constraints()
                self.answer_people()
            case "overdue":
                self.observer.stop_overdue()
                self.auditor.stop_overdue()
                self.drift_watch.stop_overdue()
            case "timeout":
                self.worker.stop_overdue()
            case "reading":
                self.reader.stop_overdue()
            case "after trouble":
                self.do_owed()
                self.reader.scan()
                self.read_constraints()
                self.answer_people()
                self.because.append("the trouble may be over")
            case "gc":
                self.sweeper.want("the timer")
            case "look again":
                self.because.append("the wait is over")
            case "retry" | "watchdog":
                pass  # the worker's next step goes on by itself; that the loop came here is told after each event

    def listen(self, event: ChildSpoke | ChildEnded) -> None:
        lane = self.lane_of(event.token)
        if isinstance(event, ChildSpoke):
            if lane:
                lane.hear(event.line)
            if sample := event.line.get("sample"):
                self.suspects.add(bytes.fromhex(sample))
        elif not self.worker.left(event.token) and lane:
            if isinstance(lane, Reader):
                lane.bury(event.token, event.status, event.last_words)
            else:
                lane.bury(event.status, event.last_words)
                if event.status != 0:
                    self.look_for_lost_copies()

    def look_for_lost_copies(self) -> None:
        """A stage failed, perhaps for want of a sample: what the store lacks is read again before it is tried again."""
        copies, suspects = self.config.settings.store.keep == "copy", self.suspects
        self.suspects = set()
        with self.journal.begin() as connection:
            files = lost_copies.read_again(connection, self.config.state / "store", copies=copies, suspects=suspects)
        if files:
            log.warning("the store lacks %d samples, whose files are read again, the first %s", len(files), files[0])
        for folder in self.config.folders:
            if mine := [file for file in files if file.is_relative_to(folder)]:
                self.reader.waiting.append(DropSettled(folder, frozenset(mine)))

    def lane_of(self, token: str) -> Lane | None:
        """The lane whose child speaks; None: a child of the past."""
        return next((lane for lane in self.lanes if token in {child.token for child in children_of(lane)}), None)

    def brought(self, what: str) -> None:
        """A drop was read: the champion is asked about it, then it is decided on."""
        if not self.drops:
            self.drops_since = now()
        self.drops.append(what)
        self.observer.want()
        self.auditor.want()
        self.drift_watch.want()

    def decide(self) -> bool:
        """Decides, once all that has come is known and no cycle runs. False: not now."""
        busy = any(lane.busy for lane in self.lanes)
        if busy or not (self.drops or self.because):
            return False
        if not self.because and self.sources.unsettled and now() < self.drops_since + PATIENCE_SECONDS:
            return False  # more of the same is being copied
        if self.take_up():
            return True
        self.sweeper.look_at_bound()
        because = "; ".join([*self.drops, *self.because])
        self.drops.clear()
        self.because.clear()
        decided = decisions.decide_all(self.journal, self.config, because, devices=self.serving.devices)
        if decided.until is not None:
            self.sources.fire_at(decided.until, "look again")
        if decided.cycle is not None:
            self.reader.crew.dismiss()
            self.worker.begin(decided.cycle)
        return True

    def take_up(self) -> bool:
        """Goes on with a cycle that rests, unless what it stands on has changed. False: there is none."""
        begun = self.worker.recover()
        if begun:
            self.reader.crew.dismiss()
            self.drop_outdated()
            self.drop_spoiled()
        return begun

    def read_constraints(self) -> None:
        """Takes in edited constraint files. A valid edit interrupts its target's cycle; an invalid one nothing."""
        with self.journal.begin() as connection:
            new = take_in(connection, self.config.constraints, self.config.server_names)
            valid = targets.requirements(connection)
            unknown = {name: targets.unknown_classes(connection, asked) for name, asked in valid.items()}
        for row in new:
            if row.error:
                stands = f"\nthe last valid constraints of {row.target} stand" if row.target in valid else ""
                log.error("%s%s", row.error, stands)
                continue
            said = f"constraints of {row.target} {'removed' if row.gone else 'changed'}"
            log.info(said)
            self.because.append(said)
            for what in unknown.get(row.target, []):
                log.warning("%s.toml: %s", row.target, what)
        if new:
            self.serving.tend()  # where a target is served, and for what batches, may have been edited
        self.drop_outdated()

    def drop_outdated(self) -> None:
        """A cycle judges by what is asked now, also where a daemon was killed before it was told, or it rested."""
        with self.journal.connect() as connection:
            valid = targets.requirements(connection)
        if target := self.worker.outdated(valid):
            self.worker.interrupt(target, f"constraints of {target} {'changed' if target in valid else 'removed'}")

    def answer_people(self) -> None:
        """Takes what people asked for on the command line."""
        for taken in people.take(self.journal, self.serving):
            if taken.kind == "gc":  # it changes nothing that is decided on
                self.sweeper.want(taken.said)
                continue
            if taken.kind == "reload":
                self.reload(taken.said)
                continue
            if taken.kind == "rollback":  # what runs was begun against the champion that goes
                self.worker.interrupt(taken.target, taken.said)
            if taken.kind == "pause":
                self.worker.rest()
            if taken.kind == "undo":
                self.reader.scan()
            self.because.append(taken.said.partition("\n")[0])
        self.drop_spoiled()

    def drop_spoiled(self) -> None:
        """A cycle on images that were forgotten goes no further, also where a daemon was killed before it was told."""
        if target := self.worker.spoiled():
            self.worker.interrupt(target, "images that it stands on were forgotten")

    def end_children(self) -> None:
        """Every child is asked to end, and ended if it does not."""
        alive = [*(child for lane in self.lanes for child in children_of(lane)), *self.worker.leaving.values()]
        alive += self.reader.crew.ready
        for child in alive:
            child.stop(grace_seconds=STOP_SECONDS - 2)
        for child in alive:
            if not child.wait(STOP_SECONDS):
                child.kill()


def children_of(lane: Lane) -> list[Child]:
    """The processes at work in a lane."""
    if isinstance(lane, Reader):
        return lane.children
    return [lane.child] if lane.child else []


def run(config: Config) -> None:
    """Runs the daemon on a workspace in this process, until it is told to stop.

    On a terminal it goes down with it; elsewhere SIGHUP has it read its configuration again. Raises WorkspaceBusy where
    another daemon has the workspace, ConfigError where a watched folder is missing.
    """
    configurations.check_surroundings(config)
    config.state.mkdir(parents=True, exist_ok=True)
    memory.share_heaps()
    with locked(config.state):
        migrate_apart(config.state)
        daemon = Daemon(config)
        on_terminal = any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if on_terminal else [])):
            signal.signal(number, lambda *_: daemon.stop())
        if not on_terminal:
            signal.signal(signal.SIGHUP, lambda *_: daemon.queue.put(ConfigTouched()))
        gc.freeze()  # what was imported stays: no collection need look at it again
        log.info("watching %s", ", ".join(str(folder) for folder in config.folders))
        daemon.run()
        log.info("stopped; the next start goes on from here")
