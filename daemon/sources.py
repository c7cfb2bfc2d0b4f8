"""Where events come from: watchdog for folders and files, APScheduler for timers.

Notification is a hint: it says where to look, and when it is quiet. What is there is for the scan to say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from apscheduler.schedulers.background import BackgroundScheduler
from watchdog.events import (
    EVENT_TYPE_CLOSED_NO_WRITE,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_OPENED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from daemon.config import Config
from daemon.events import (
    ConstraintsTouched,
    DropSettled,
    Event,
    PersonAsked,
    SourceFailed,
    TimerFired,
)

Put = Callable[[Event], None]
EDIT_SETTLE_SECONDS = 0.05  # editors write a file in two or three steps
LONGEST_SECONDS = 30.0  # a burst of changes that lasts longer is told in parts
LOOK_SECONDS = 0.5  # between two looks whether a watched folder is still the one that is watched
MANY = 20_000  # so many paths are no longer a hint: the whole folder is scanned


class Settling:
    """Gathers the paths of a burst of changes, and tells them once nothing has changed for a while.

    Of a stream that never pauses, those are told from time to time that have not changed themselves for that while.
    """

    def __init__(
        self, seconds: float, tell: Callable[[frozenset[Path]], None], longest: float = LONGEST_SECONDS
    ) -> None:
        self.seconds = seconds
        self.longest = max(longest, seconds)
        self.tell = tell
        self._paths: dict[Path, float] = {}  # when each changed last
        self._first = self._last = 0.0  # change that was not told yet
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._wait, name="settling", daemon=True)

    def touch(self, *paths: Path) -> None:
        with self._changed:
            self._last = time.monotonic()
            if not self._paths:
                self._first = self._last
            self._paths.update(dict.fromkeys(paths, self._last))
            self._changed.notify()

    @property
    def pending(self) -> bool:
        """Whether something changed that was not told yet."""
        return bool(self._paths)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _wait(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or bool(self._paths))
                while not self._stopped and (left := self._due() - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._stopped:
                    return
                paths = self._take_quiet(time.monotonic())
            if paths:
                self.tell(paths)

    def _due(self) -> float:
        return min(self._last + self.seconds, self._first + self.longest)

    def _take_quiet(self, moment: float) -> frozenset[Path]:
        quiet = frozenset(path for path, last in self._paths.items() if last + self.seconds <= moment)
        for path in quiet:
            del self._paths[path]
        self._first = moment
        return quiet


class _Touch(FileSystemEventHandler):
    def __init__(self, touch: Callable[..., None], folder: Path | None = None) -> None:
        self.touch = touch
        self.folder = str(folder)
        self.ended = False  # the folder itself went, and with it the watch

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type == EVENT_TYPE_DELETED and event.src_path == self.folder:
            self.ended = True
        if event.event_type in (EVENT_TYPE_OPENED, EVENT_TYPE_CLOSED_NO_WRITE):
            return  # reading is no change, and we read ourselves
        paths = [event.src_path, event.dest_path] if event.dest_path else [event.src_path]
        self.touch(*(Path(path if isinstance(path, str) else path.decode()) for path in paths))


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
    handler: _Touch
    recursive: bool
    observer: BaseObserver
    inode: int


class Sources:
    """All sources of one daemon, feeding one queue."""

    def __init__(self, config: Config, queue: SimpleQueue[Event]) -> None:
        self.config = config
        self.put: Put = queue.put
        self.scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"misfire_grace_time": None})
        self._settlings: list[Settling] = []
        self._observers: list[BaseObserver] = []
        self._watched: list[_Watched] = []
        self._overflow = _Overflow(self._look_everywhere)

    def start(self) -> None:
        watch = self.config.settings.watch
        for folder in self.config.folders:
            self._watch(folder, watch.settle_seconds, self._settled(folder), recursive=True)
        self._watch(
            self.config.constraints,
            EDIT_SETTLE_SECONDS,
            lambda _paths: self.put(ConstraintsTouched()),
            recursive=False,
        )
        self._watch_wake()
        minutes = watch.rescan_minutes
        self.scheduler.add_job(self._fire, "interval", ["rescan"], minutes=minutes)
        self.scheduler.add_job(self._fire, "interval", ["triton"], seconds=self.config.settings.triton.check_seconds)
        self.scheduler.add_job(self._watch_again, "interval", seconds=LOOK_SECONDS, max_instances=1, coalesce=True)
        logging.getLogger("watchdog").addHandler(self._overflow)
        self.scheduler.start()

    def stop(self) -> None:
        logging.getLogger("watchdog").removeHandler(self._overflow)
        self.scheduler.pause()
        self.scheduler.remove_all_jobs()  # waits for a round of it: one that is shut down in the midst raises
        self.scheduler.shutdown(wait=False)
        for observer in self._observers:
            observer.stop()
        for settling in self._settlings:
            settling.stop()

    @property
    def unsettled(self) -> bool:
        """Whether something in the watched folders has changed a moment ago: more may be on its way."""
        return any(settling.pending for settling in self._settlings[: len(self.config.folders)])

    def fire_at(self, moment: float, name: str) -> None:
        """A timer of this name at that moment (seconds since the epoch), in place of an earlier one of it."""
        when = datetime.fromtimestamp(moment, UTC)
        self.scheduler.add_job(self._fire, "date", [name], run_date=when, id=name, replace_existing=True)

    def touch(self, folder: Path, *paths: Path) -> None:
        """Asks for another look at paths that were too fresh to be read."""
        self._settlings[self.config.folders.index(folder)].touch(*paths)

    def _fire(self, name: str) -> None:
        self.put(TimerFired(name))

    def _settled(self, folder: Path) -> Callable[[frozenset[Path]], None]:
        def tell(paths: frozenset[Path]) -> None:
            self.put(DropSettled(folder, None if len(paths) > MANY or folder in paths else paths))

        return tell

    def _watch(self, folder: Path, seconds: float, tell: Callable[[frozenset[Path]], None], *, recursive: bool) -> None:
        settling = Settling(seconds, tell)
        settling.start()
        self._settlings.append(settling)
        handler = _Touch(settling.touch, folder)
        observer = self._observe(folder, handler, recursive=recursive)
        self._watched.append(_Watched(folder, handler, recursive, observer, folder.stat().st_ino))

    def _watch_again(self) -> None:
        """A watch ends with its folder, and says nothing of one that takes its place: removed, moved, mounted over."""
        for watched in self._watched:
            try:
                inode = watched.folder.stat().st_ino
            except OSError:
                continue
            if inode != watched.inode or watched.handler.ended:  # the number may have been given again
                watched.inode, watched.handler.ended = inode, False
                watched.observer.stop()
                watched.observer = self._observe(watched.folder, watched.handler, recursive=watched.recursive)
                self.put(SourceFailed(f"{watched.folder}: is another folder than before; it is watched from now on"))
                watched.handler.touch(watched.folder)

    def _look_everywhere(self) -> None:
        self.put(SourceFailed("notifications were lost; all folders are looked through"))
        for watched in self._watched:
            watched.handler.touch(watched.folder)

    def _watch_wake(self) -> None:
        inbox = self.config.state / "inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        self._observe(inbox, _Touch(lambda *_paths: self.put(PersonAsked())), recursive=False, local=True)

    def _observe(
        self, folder: Path, handler: FileSystemEventHandler, *, recursive: bool, local: bool = False
    ) -> BaseObserver:
        watch = self.config.settings.watch
        polling = watch.polling and not local
        observer: BaseObserver = PollingObserver(timeout=watch.polling_seconds) if polling else Observer()
        try:
            observer.schedule(handler, str(folder), recursive=recursive)
            observer.start()
        except OSError as error:  # for instance the limit of inotify watches
            self.put(SourceFailed(f"{folder}: cannot be watched ({error}); it is polled meanwhile"))
            observer = PollingObserver(timeout=watch.polling_seconds)
            observer.schedule(handler, str(folder), recursive=recursive)
            observer.start()
        self._observers.append(observer)
        return observer


@contextmanager
def running(sources: Sources) -> Iterator[Sources]:
    """The sources, started, and stopped at the end whatever happens."""
    sources.start()
    try:
        yield sources
    finally:
        sources.stop()
