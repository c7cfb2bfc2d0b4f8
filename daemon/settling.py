"""When what changes in a watched folder has come to rest: bursts are told once, files that are being written later."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    EVENT_TYPE_CREATED,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

from daemon.events import FEW

# All but that a file was opened, or closed unwritten: reading is no change, and whoever reads 50,000 files, as we do
# ourselves, would be told of twice as many events.
CHANGES: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileModifiedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent, FileAttribEvent,
    DirCreatedEvent, DirModifiedEvent, DirMovedEvent, DirDeletedEvent, DirAttribEvent,
]  # fmt: skip

LONGEST_SECONDS = 120.0  # a burst of changes that lasts longer is told in parts
WRITING_SECONDS = 600.0  # a file that was left open, and not written to for longer, is read as it is


class Settling:
    """Gathers the paths of a burst of changes, and tells them once nothing has changed for a while.

    What is being written waits until it is closed, however long the writer pauses. Of a stream that never pauses,
    those are told from time to time that have not changed themselves for that while.
    """

    def __init__(
        self,
        seconds: float,
        tell: Callable[[frozenset[Path]], None],
        longest: float = LONGEST_SECONDS,
        *,
        announce: Callable[[bool], None] = lambda _many: None,
    ) -> None:
        """announce: told when something begins to come, and again once it is more than a few files."""
        self.seconds = seconds
        self.longest = max(longest, seconds)
        self.tell = tell
        self.announce = announce
        self._coming = 0  # files that have come in this burst
        self._paths: dict[Path, float] = {}  # when each changed last
        self._open: dict[Path, float] = {}  # those that are being written
        self._first = self._last = 0.0  # change that was not told yet
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._wait, name="settling", daemon=True)

    def touch(self, *paths: Path, writing: bool = False, coming: int = 0) -> None:
        """These have changed; writing: and whoever writes them has not closed them yet; coming: so many files came."""
        with self._changed:
            self._last = time.monotonic()
            if not self._paths:
                self._first = self._last
            for path in paths:
                self._paths[path] = self._last
                if writing:
                    self._open[path] = self._last
                else:
                    self._open.pop(path, None)
            before, self._coming = self._coming, self._coming + coming
            self._changed.notify()
        if before == 0 < coming or before <= FEW < before + coming:
            self.announce(before + coming > FEW)

    def complete(self, folder: Path) -> None:
        """A done-marker has come: what lies in its folder is told at once."""
        with self._changed:
            for path in [path for path in self._paths if path.is_relative_to(folder)]:
                del self._paths[path]
                self._open.pop(path, None)
            self._coming = 0
        self.tell(frozenset((folder,)))

    @property
    def pending(self) -> bool:
        """Whether something changed that was not told yet."""
        return bool(self._paths)

    @property
    def writing(self) -> frozenset[Path]:
        """What is open for writing at this moment."""
        with self._changed:
            return frozenset(self._open)

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
                while not self._stopped and self._paths and (left := self._due() - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._stopped:
                    return
                paths = self._take_quiet(time.monotonic())
            if paths:
                self.tell(paths)
            del paths  # of a large drop they are many, and the next burst may be days away

    def _due(self) -> float:
        closed = max(self._open.values(), default=-WRITING_SECONDS) + WRITING_SECONDS
        return min(max(self._last + self.seconds, closed), self._first + self.longest)

    def _take_quiet(self, moment: float) -> frozenset[Path]:
        quiet = frozenset(
            path
            for path, last in self._paths.items()
            if last + (WRITING_SECONDS if path in self._open else self.seconds) <= moment
        )
        # New ones: a dictionary keeps the room that its largest burst took.
        self._paths = {path: last for path, last in self._paths.items() if path not in quiet}
        self._open = {path: last for path, last in self._open.items() if path not in quiet}
        self._first, self._coming = moment, 0
        return quiet


class Touch(FileSystemEventHandler):
    """Hears of one watched folder, and says what changed in it."""

    def __init__(self, settling: Settling, folder: Path, done_marker: str = "") -> None:
        self.settling = settling
        self.folder = str(folder)
        self.done_marker = done_marker
        self.hears_closing = False  # of files that were written: polling does not
        self.ended = False  # the folder itself went, and with it the watch
        self.grown = False  # it holds a folder more, which takes a watch more

    def on_any_event(self, event: FileSystemEvent) -> None:
        kind, source, target = event.event_type, os.fsdecode(event.src_path), os.fsdecode(event.dest_path)
        changed = target or source
        if self.done_marker and changed.rpartition("/")[2] == self.done_marker and kind != EVENT_TYPE_DELETED:
            self.settling.complete(Path(changed).parent)
            return
        if event.is_directory:
            self.ended |= kind == EVENT_TYPE_DELETED and source == self.folder
            self.grown |= kind in (EVENT_TYPE_CREATED, EVENT_TYPE_MOVED)
            if kind == EVENT_TYPE_MODIFIED and not _has_new_rights(source):
                return  # its files have told themselves what came or went
        if event.is_synthetic:
            return  # what lies in a folder that was moved: the folder itself has been told
        # What is written to is closed some time. Only what truncate(2) cut by its name is not: it is read late.
        writing = self.hears_closing and kind == EVENT_TYPE_MODIFIED and not event.is_directory
        coming = self._count_coming(event, changed)
        self.settling.touch(*(Path(path) for path in (source, target) if path), writing=writing, coming=coming)

    def _count_coming(self, event: FileSystemEvent, changed: str) -> int:
        """How many images may have come: with a folder that holds something any number."""
        if event.event_type not in (EVENT_TYPE_CREATED, EVENT_TYPE_MOVED) or "/." in changed[len(self.folder) :]:
            return 0
        return int(not event.is_directory) or (FEW + 1) * _holds_something(changed)


def _holds_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name[0] != "." for entry in entries)
    except OSError:
        return False


def _has_new_rights(folder: str) -> bool:
    """Whether the last change to a folder was one of itself: what comes or goes in it sets both of its times."""
    try:
        found = Path(folder).stat()
    except OSError:
        return True
    return found.st_ctime_ns != found.st_mtime_ns
