"""Where events come from: watchdog for folders and files, APScheduler for timers.

Notification is a hint: it says where to look, and when it is quiet. What is there is for the scan to say.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from apscheduler.schedulers.background import BackgroundScheduler
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from daemon.config import Config
from daemon.events import (
    ConstraintsTouched,
    DropSettled,
    Event,
    ImagesComing,
    PersonAsked,
    SourceFailed,
    TimerFired,
)
from daemon.quiet_observer import QuietObserver
from daemon.settling import CHANGES, Settling, Touch
from daemon.watch_limit import find_watch_limit

Put = Callable[[Event], None]
OVERDUE_SECONDS = 10.0  # between two looks at children that take too long
EDIT_SETTLE_SECONDS = 0.05  # editors write a file in two or three steps
LOOK_SECONDS = 0.5  # between two looks whether a watched folder is still the one that is watched
MANY = 20_000  # so many paths are no longer a hint: the whole folder is scanned


class _Wake(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.wake()


class _Overflow(logging.Handler):
    """watchdog says in its log alone that the kernel dropped notifications."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            self.tell()


@dataclass(slots=True)
class _Watched:
    """A folder, what hears of it, and which folder it was when that began: another may take its place."""

    folder: Path
    handler: Touch
    recursive: bool
    polling: bool
    observer: BaseObserver
    inode: int
    shut: bool = False  # it, or a folder in it, could not be looked into, nor be watched


class Sources:
    """All sources of one daemon, feeding one queue."""

    def __init__(self, config: Config, queue: SimpleQueue[Event]) -> None:
        self.config = config
        self.put: Put = queue.put
        self.scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"misfire_grace_time": None})
        self._settlings: dict[Path, Settling] = {}
        self._observers: set[BaseObserver] = set()  # those at work
        self._watched: list[_Watched] = []
        self._halfway = False  # not all is watched that should be: a folder went away meanwhile
        self._overflow = _Overflow(self._look_everywhere)
        self._stopped = threading.Event()
        self._looking = threading.Lock()  # whoever holds it may say what is watched
        # Not by the scheduler: at two looks a second its bookkeeping costs ten times what they do.
        self._looker = threading.Thread(target=self._look, name="looking", daemon=True)

    def start(self) -> None:
        self._watch_all()
        self._watch_wake()
        self._set_timers()
        logging.getLogger("watchdog").addHandler(self._overflow)
        self.scheduler.start()
        self._looker.start()

    def reconfigure(self, config: Config) -> None:
        """Watches as these settings say. What came in between nobody has heard of: all is to be looked through."""
        before, self.config = self.config, config
        if self._halfway or (config.settings.watch, config.constraints) != (before.settings.watch, before.constraints):
            self._halfway = True
            with self._looking:
                self._unwatch_all()
                self._watch_all()
            self._halfway = False
        self._set_timers()

    def _watch_all(self) -> None:
        watch = self.config.settings.watch
        for folder in self.config.folders:
            about = self.config.watched(folder)
            settling = Settling(watch.settle_seconds, self._settled(folder), announce=self._announce)
            self._watch(Touch(settling, folder, about.done_marker), folder, polling=about.polling, recursive=True)
        settling = Settling(EDIT_SETTLE_SECONDS, lambda _paths: self.put(ConstraintsTouched()))
        constraints = self.config.constraints
        self._watch(Touch(settling, constraints), constraints, polling=watch.polling, recursive=False)

    def _unwatch_all(self) -> None:
        for watched in self._watched:
            watched.observer.stop()
            self._observers.discard(watched.observer)
            watched.handler.settling.stop()
        self._watched.clear()
        self._settlings.clear()

    def _set_timers(self) -> None:
        rescan = self.config.settings.watch.rescan_minutes * 60
        for name, seconds in (("rescan", rescan), ("overdue", OVERDUE_SECONDS)):
            self.scheduler.add_job(self._fire, "interval", [name], seconds=seconds, id=name, replace_existing=True)

    def stop(self) -> None:
        logging.getLogger("watchdog").removeHandler(self._overflow)
        self.scheduler.pause()
        self.scheduler.remove_all_jobs()  # waits for a round of it: one that is shut down in the midst raises
        self.scheduler.shutdown(wait=False)
        self._stopped.set()
        self._looker.join()
        for observer in self._observers:
            observer.stop()
        for settling in self._settlings.values():
            settling.stop()

    @property
    def unsettled(self) -> bool:
        """Whether something in the watched folders has changed a moment ago: more may be on its way."""
        return any(settling.pending for at, settling in self._settlings.items() if at != self.config.constraints)

    def writing(self, folder: Path) -> frozenset[Path]:
        """The files of a watched folder that are being written: they are told of when they are closed."""
        settling = self._settlings.get(folder)
        return settling.writing if settling else frozenset()

    def watch_again(self, folder: Path) -> None:
        """A folder in it that could not be looked into can be: it is watched anew, and looked through."""
        for watched in self._watched:
            watched.shut |= watched.folder == folder

    def fire_at(self, moment: float, name: str) -> None:
        """A timer of this name at that moment (seconds since the epoch), in place of an earlier one of it."""
        when = datetime.fromtimestamp(moment, UTC)
        self.scheduler.add_job(self._fire, "date", [name], run_date=when, id=name, replace_existing=True)

    def fire_every(self, seconds: float, name: str) -> None:
        """A timer of this name, again and again."""
        self.scheduler.add_job(self._fire, "interval", [name], seconds=seconds, id=name, replace_existing=True)

    def touch(self, folder: Path, *paths: Path) -> None:
        """Asks for another look at paths that were too fresh to be read."""
        if settling := self._settlings.get(folder):  # it is watched still
            settling.touch(*paths)

    def _fire(self, name: str) -> None:
        self.put(TimerFired(name))

    def _announce(self, many: bool) -> None:
        self.put(ImagesComing(many))

    def _settled(self, folder: Path) -> Callable[[frozenset[Path]], None]:
        def tell(paths: frozenset[Path]) -> None:
            self.put(DropSettled(folder, None if len(paths) > MANY or folder in paths else paths))

        return tell

    def _watch(self, handler: Touch, folder: Path, *, polling: bool, recursive: bool) -> None:
        handler.settling.start()
        self._settlings[folder] = handler.settling
        observer = self._observe(folder, handler, polling=polling, recursive=recursive)
        self._watched.append(_Watched(folder, handler, recursive, polling, observer, folder.stat().st_ino))

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            with self._looking:
                for watched in self._watched:
                    try:
                        self._look_at(watched)
                    except OSError:  # away: when it is back, something may have come that nothing was heard of
                        watched.inode = 0

    def _look_at(self, watched: _Watched) -> None:
        """A watch ends with its folder, and says nothing of one that takes its place: removed, moved, mounted over."""
        inode, shut = watched.folder.stat().st_ino, not os.access(watched.folder, os.R_OK | os.X_OK)
        if inode != watched.inode or watched.handler.ended:  # the number may have been given again
            watched.inode, watched.handler.ended = inode, False
            self._replace(watched, f"{watched.folder}: is another folder than before; it is watched from now on")
        elif watched.shut and not shut:
            self._replace(watched, f"{watched.folder}: may be looked into again; it is watched from now on")
        watched.shut = shut
        if watched.handler.grown:
            watched.handler.grown = False
            if not watched.polling and (error := find_watch_limit(watched.folder)):
                watched.polling = True
                self._replace(watched, _polled(watched.folder, error))

    def _replace(self, watched: _Watched, why: str) -> None:
        watched.observer.stop()
        self._observers.discard(watched.observer)
        self.put(SourceFailed(why))
        watched.observer = self._observe(
            watched.folder, watched.handler, polling=watched.polling, recursive=watched.recursive
        )
        watched.handler.settling.touch(watched.folder)

    def _look_everywhere(self) -> None:
        self.put(SourceFailed("notifications were lost; all folders are looked through"))
        for watched in self._watched:
            watched.handler.settling.touch(watched.folder)

    def _watch_wake(self) -> None:
        inbox = self.config.state / "inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        self._observe(inbox, _Wake(lambda: self.put(PersonAsked())), polling=False, recursive=False)

    def _observe(
        self, folder: Path, handler: FileSystemEventHandler, *, polling: bool, recursive: bool
    ) -> BaseObserver:
        seconds = self.config.settings.watch.polling_seconds
        observer: BaseObserver = PollingObserver(timeout=seconds) if polling else _observer(handler)
        if isinstance(handler, Touch):
            handler.hears_closing = not polling
        try:
            observer.schedule(handler, str(folder), recursive=recursive, event_filter=CHANGES)
            observer.start()
        except OSError as error:
            self.put(SourceFailed(_polled(folder, error)))
            observer = PollingObserver(timeout=seconds)
            if isinstance(handler, Touch):
                handler.hears_closing = False
            observer.schedule(handler, str(folder), recursive=recursive, event_filter=CHANGES)
            observer.start()
        self._observers.add(observer)
        return observer


def _observer(handler: FileSystemEventHandler) -> BaseObserver:
    """Of the kernel's notifications. A done-marker is heard of wherever it lies in what was moved in."""
    return Observer() if isinstance(handler, Touch) and handler.done_marker else QuietObserver()


def _polled(folder: Path, error: OSError) -> str:
    """What is said of a folder that the kernel does not watch, with what mends it."""
    limit = {errno.ENOSPC: "watches", errno.EMFILE: "instances"}.get(error.errno or 0)
    if limit is None:
        return f"{folder}: cannot be watched ({error}); it is polled meanwhile"
    name = f"fs.inotify.max_user_{limit}"
    file = Path("/proc/sys", *name.split("."))
    more = 2 * int(file.read_text()) if file.exists() else 524_288
    return (
        f"{folder}: the limit of inotify {limit} is reached; it is polled meanwhile. "
        f"Raise it (`sudo sysctl {name}={more}`, and in /etc/sysctl.d to keep it) and start the daemon again"
    )


@contextmanager
def running(sources: Sources) -> Iterator[Sources]:
    """The sources, started, and stopped at the end whatever happens."""
    sources.start()
    try:
        yield sources
    finally:
        sources.stop()
