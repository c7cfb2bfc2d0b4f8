"""The lane that reads drops: one at a time, in a child."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from daemon.children import Child
from daemon.config import Config
from daemon.events import DropSettled, Event
from daemon.intake import Drop, compare, write_job
from daemon.journal import get, now
from daemon.schema import drops
from daemon.sources import Sources
from daemon.store import StoreUnwritable

log = logging.getLogger("relearn")
TROUBLE_SECONDS = 30.0  # after which a store that could not be written is tried again
PATIENCE_SECONDS = 600.0  # for one batch of files; a decoder or a file system that hangs longer is given up


class Reader:
    """Drops that wait to be read, and the one that is being read."""

    def __init__(
        self,
        config: Config,
        journal: Engine,
        put: Callable[[Event], None],
        sources: Sources,
        tell: Callable[[str], None],
    ) -> None:
        self.config = config
        self.journal = journal
        self.put = put
        self.sources = sources
        self.tell = tell  # what a drop brought, for the next decision
        self.waiting: deque[DropSettled] = deque()
        self.drop: Drop | None = None
        self.child: Child | None = None
        self.crashes = 0
        self.heard = 0.0  # when the child last said something, or began

    @property
    def busy(self) -> bool:
        return self.drop is not None or bool(self.waiting)

    def scan(self) -> None:
        """Looks at everything in the watched folders, whatever notification said."""
        self.waiting.extend(DropSettled(folder, None) for folder in self.config.folders)

    def step(self) -> bool:
        """Begins the next drop, or goes on with one whose child could not be started (a full disk).

        False: there is none, or one is being read.
        """
        if self.drop is not None and self.child is None:
            self._go_on()
            return True
        if self.drop is not None or not self.waiting:
            return False
        settled = self.waiting.popleft()
        try:
            with self.journal.connect() as connection:
                difference = compare(
                    connection, settled.folder, settled.paths, self.config.settings.watch.settle_seconds
                )
        except FileNotFoundError as error:
            log.warning("%s", error)
            return True
        self._look_again(settled.folder, difference.fresh)
        if difference.read or difference.gone or difference.unnamable:
            self.drop = Drop(self.config, self.journal, settled.folder, difference)
            self.drop.refuse(
                difference.unnamable,
                "its name is not UTF-8 text on one line: rename it",
            )
            self._go_on()
        return True

    def hear(self, line: dict[str, Any]) -> None:
        assert self.drop is not None
        self.crashes, self.heard = 0, time.monotonic()
        self.drop.take(line["files"])
        done = self.drop.total - len(self.drop.unread)
        log.debug("drop %d: %d of %d files read", self.drop.id, done, self.drop.total)

    def bury(self, status: int, last_words: str) -> None:
        assert self.drop is not None
        self.child = None
        if status != 0:
            self.crashes += 1
            log.warning("the reader of drop %d died (status %d): %s", self.drop.id, status, last_words[-500:])
            if StoreUnwritable.__name__ in last_words:  # no file's fault
                self._give_up(last_words)
                return
            starved = status == -signal.SIGKILL or MemoryError.__name__ in last_words
            self.drop.crashed(last_words, starved)
        self._go_on()

    def _go_on(self) -> None:
        assert self.drop is not None
        if not self.drop.unread:
            self._finish()
            return
        token = f"drop{self.drop.id}.{len(self.drop.unread)}.{self.crashes}"
        job = self.config.state / "drops" / f"{self.drop.id}.json"
        write_job(job, self.drop.job(token))
        self.child = Child(token, "daemon.decode", [str(job)], self.put)
        self.heard = time.monotonic()
        self.sources.fire_at(now() + PATIENCE_SECONDS, "reading")

    def stop_overdue(self) -> None:
        """Stops a child that has said nothing for too long: a file that hangs it is found as one that crashes it."""
        if self.child is None:
            return
        silent = time.monotonic() - self.heard
        if silent >= PATIENCE_SECONDS:
            log.warning("the reader has said nothing for %.0f s: it is stopped", PATIENCE_SECONDS)
            self.child.stop(grace_seconds=5.0)
        else:
            self.sources.fire_at(now() + PATIENCE_SECONDS - silent, "reading")

    def _give_up(self, last_words: str) -> None:
        assert self.drop is not None
        log.error(
            "drop %d: %d files are not read, the store cannot be written (%s); it is tried again in %g s",
            self.drop.id,
            len(self.drop.unread),
            "".join(last_words.strip().splitlines()[-1:]),
            TROUBLE_SECONDS,
        )
        self.sources.fire_at(now() + TROUBLE_SECONDS, "after trouble")
        self._finish()

    def _finish(self) -> None:
        drop, self.drop = self.drop, None
        assert drop is not None
        drop.finish()
        self._look_again(drop.folder, drop.again)
        (self.config.state / "drops" / f"{drop.id}.json").unlink(missing_ok=True)
        with self.journal.connect() as connection:
            row = get(connection, drops, drop.id)
        said = f"drop {drop.id}: {row.added} images, {row.gone} gone, {row.rejected} rejected"
        log.info(said)
        if row.added or row.gone:
            self.tell(said)

    def _look_again(self, folder: Path, paths: list[str]) -> None:
        if paths:
            self.sources.touch(folder, *(folder / path for path in paths))
