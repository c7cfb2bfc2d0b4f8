"""The lane that takes drops in: one at a time, in children.

manifest   what its manifest says, where the folder has one (daemon/manifest.py)
read       its files, in two children where they are many (daemon/decode.py)
match      near-duplicates among them and of what was known before (daemon/match.py), which settles their roles
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from daemon import placing
from daemon.children import Child
from daemon.config import Config
from daemon.crew import Crew, Kind
from daemon.events import FEW, DropSettled, Event
from daemon.intake import Drop, leave_folders
from daemon.journal import now
from daemon.part import Part, why
from daemon.scan import Difference, compare
from daemon.schema import drops
from daemon.sources import Sources
from daemon.store import UNWRITABLE
from policies.facts import Role

log = logging.getLogger("relearn")
TROUBLE_SECONDS = 30.0  # after which a store that could not be written is tried again
PATIENCE_SECONDS = 600.0  # for one batch of files; a decoder or a file system that hangs longer is given up
BATCH = 1024  # files that are made durable with one sync
PARTS = 2
SAY_SECONDS = 10.0  # between two words of how far a long drop is


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
        self.sources = sources
        self.tell = tell  # what a drop brought, for the next decision
        self.waiting: deque[DropSettled] = deque()
        self.drop: Drop | None = None
        self.parts: list[Part] = []
        self.child: Child | None = None  # that reads the manifest, or looks for near-duplicates
        self.crew = Crew(put, config.state / "duplicates")
        self.unmatched = True  # what an earlier daemon left, or wrote before there was an index
        self.outdated = False  # the index holds pictures of images that were forgotten
        self.linked: set[Path] = set()  # folders with links that notification does not see through
        self.shut: dict[Path, set[Path]] = {}  # of each watched folder what in it could not be looked into
        self.away: set[Path] = set()  # folders that were empty or away: what is back is looked through
        self.rests_until = 0.0  # after near-duplicates could not be looked for
        self._began = self._said = self._heard = 0.0

    @property
    def busy(self) -> bool:
        return self.drop is not None or bool(self.waiting) or self.child is not None

    @property
    def children(self) -> list[Child]:
        """Those at work, and listened to; those that only got ready are none of them."""
        return [child for child in (self.child, *(part.child for part in self.parts)) if child]

    def reconfigure(self, config: Config) -> None:
        """What comes next is read as these settings say; of folders that are watched no more nothing is."""
        self.config = config
        self.waiting = deque(drop for drop in self.waiting if drop.folder in config.folders)

    def scan(self) -> None:
        """Looks at everything in the watched folders, whatever notification said."""
        self.waiting.extend(DropSettled(folder, None) for folder in self.config.folders)

    def get_ready(self, *, many: bool) -> None:
        """Images are on their way: what reads them is started, and of many what looks for near-duplicates, too."""
        if not self.busy:
            self.crew.get_ready("decode", PARTS if many else 1)
            if many:
                self.crew.get_ready("match")

    def recover(self) -> None:
        """After a crash: drops that were being read count as they are; the start's scan finds what is missing."""
        with self.journal.begin() as connection:
            left = update(drops).where(drops.c.state == "reading").values(state="matching", ended=now())
            connection.execute(left)
        self.unmatched = True
        shutil.rmtree(self.config.state / "drops", ignore_errors=True)

    def step(self) -> bool:
        """Begins the next drop, or goes on with one whose child could not be started (a full disk).

        False: there is none, or one is being read.
        """
        if self.child is not None:
            return False
        if self.drop is not None:
            return self._go_on()
        if self.waiting:
            self._begin(self.waiting.popleft())
            return True
        if now() < self.rests_until:
            return False
        if self.outdated or (self.unmatched and self._is_anything_unmatched()):
            self.outdated = False
            self._match(all_of_it=self.unmatched)
            return True
        self.unmatched = False
        return False

    # --- what the children say ---------------------------------------------------------------------------------------

    def hear(self, line: dict[str, Any]) -> None:
        self._heard = time.monotonic()
        match line["stage"], line["event"]:
            case "intake", _:
                self._take(line["token"], line["files"])
            case "manifest", "rows":
                assert self.drop is not None
                self.drop.hear_rows(line["rows"])
            case "manifest", _:
                assert self.drop is not None
                self.drop.hear_manifest(line)
            case "match", _:
                with self.journal.begin() as connection:
                    placing.remember(connection, line["pairs"])

    def bury(self, token: str, status: int, last_words: str) -> None:
        if self.child is not None and self.child.token == token:
            self.child = None
            self._bury_single(token, status, last_words)
            return
        part = next((part for part in self.parts if part.child and part.child.token == token), None)
        if part is None:
            return  # it had only got ready
        assert self.drop is not None
        part.child = None
        if status == UNWRITABLE:  # no file's fault
            self._give_up(last_words)
        elif status != 0 and part.unread:
            words = last_words.strip()[-500:] or "without a word"
            log.warning("a reader of drop %d died (status %d), %s; it is begun anew", self.drop.id, status, words)
            self._look_for_the_culprit(part, status, last_words)
        else:
            part.alone = False

    def _bury_single(self, token: str, status: int, last_words: str) -> None:
        if status == 0:
            if token.startswith("match"):
                self._place()
            return
        words = last_words.strip()[-500:] or "without a word"
        log.error("%s ended with status %d, %s; it is tried again in %g s", token, status, words, TROUBLE_SECONDS)
        if token.startswith("match"):
            self.unmatched = True  # no role is given before it is known what is near to what
            self._leave()
            self.rests_until = now() + TROUBLE_SECONDS
        elif self.drop is not None:
            self.drop.lose_manifest()
        self.sources.fire_at(now() + TROUBLE_SECONDS, "after trouble")

    def _take(self, token: str, files: list[dict[str, Any]]) -> None:
        assert self.drop is not None
        part = next(part for part in self.parts if part.child and part.child.token == token)
        part.take(len(files))
        self.drop.record(files)
        if (moment := time.monotonic()) >= self._said + SAY_SECONDS:
            self._said = moment
            log.info("drop %d: %s", self.drop.id, self._progress(moment))

    def _progress(self, moment: float) -> str:
        assert self.drop is not None
        total, left = len(self.drop.files), sum(len(part.unread) for part in self.parts)
        speed = max(total - left, 1) / max(moment - self._began, 1e-3)
        return f"{total - left:,} of {total:,} files read, {speed:,.0f}/s, about {left / speed:,.0f} s left"

    # --- from phase to phase -----------------------------------------------------------------------------------------

    def _begin(self, settled: DropSettled) -> None:
        folder, started = settled.folder, time.monotonic()
        try:
            with self.journal.connect() as connection:
                difference = compare(
                    connection,
                    self.config.watched(folder),
                    None if folder in self.linked | self.away else settled.paths,
                    self.config.settings.watch.settle_seconds,
                    self.sources.writing(folder),
                )
        except FileNotFoundError as error:
            log.warning("%s", error)
            self.away.add(folder)
            self.crew.dismiss()
            return
        self.away.discard(folder)
        if settled.paths is None:
            log.info("%s: looked through in %.1f s", folder, time.monotonic() - started)
        self._look_again(folder, difference.fresh)
        if difference.links:
            self.linked.add(folder)
        self._note_shut(settled, {folder / path for path in difference.shut})
        if difference:
            self._open_drop(folder, difference)
        else:
            self.crew.dismiss()

    def _note_shut(self, settled: DropSettled, shut: set[Path]) -> None:
        """What could not be looked into could not be watched either: it is once it can be."""
        before = self.shut.get(settled.folder, set())
        looked_at = settled.paths or {settled.folder}
        opened = {path for path in before - shut if any(path.is_relative_to(at) for at in looked_at)}
        self.shut[settled.folder] = before - opened | shut
        if opened:
            self.sources.watch_again(settled.folder)

    def _open_drop(self, folder: Path, difference: Difference) -> None:
        self.drop = Drop(self.config, self.journal, folder, difference)
        self._began = self._said = self._heard = time.monotonic()
        self.drop.refuse(difference.unnamable, "its name is not UTF-8 text on one line: rename it")
        for path, reason in difference.closed.items():
            self.drop.refuse([path], f"a folder that cannot be looked into: {reason}", again=True)
        files = self.drop.files
        number = PARTS if len(files) > FEW else 1
        self.parts = [Part(part, files[part::number]) for part in range(number)]
        if self.drop.watched.manifest and (files or difference.manifest):
            if os.path.exists(folder / self.drop.watched.manifest):  # noqa: PTH110  (it raises for no odd name)
                self._read_manifest()
            else:  # when it comes, it is asked about these images, too
                self.drop.lose_manifest()

    def _go_on(self) -> bool:
        """Starts what of the drop waits to be started. False: its children are at work."""
        assert self.drop is not None
        waiting = [part for part in self.parts if part.child is None and part.unread]
        for part in waiting:
            self._read(part)
        if waiting:
            self.crew.get_ready("match")
        if waiting or any(part.child for part in self.parts):
            return bool(waiting)
        row = self.drop.finish("matching")
        self._look_again(self.drop.folder, self.drop.again)
        if row.added:
            self._match()
        else:
            self._place()
        return True

    def _read_manifest(self) -> None:
        assert self.drop is not None
        paths = None if self.drop.manifest else self.drop.files
        about = {
            "folder": str(self.drop.folder),
            "manifest": self.drop.watched.manifest,
            "paths": paths,
            "kept": str(self._file("said")),
            "journal": str(self.config.state / "journal.db"),
        }
        self.child = self._start("manifest", about)

    def _read(self, part: Part) -> None:
        assert self.drop is not None
        about = {
            "store": str(self.config.state / "store"),
            "keep": self.config.settings.store.keep,
            "part": part.number,
            "at": str(self._file(f"{part.number}.at")),
            "pictures": str(self._file(f"{part.number}.pictures")),
            "folder": str(self.drop.folder),
            "files": part.give(),
            "max_pixels": self.config.settings.watch.max_megapixels * 1e6,
            "batch": BATCH,
        }
        part.child = self._start("decode", about)

    def _match(self, *, all_of_it: bool = False) -> None:
        about = {
            "journal": str(self.config.state / "journal.db"),
            "store": str(self.config.state / "store"),
            "max_pixels": self.config.settings.watch.max_megapixels * 1e6,
            "pictures": [str(self._file(f"{part.number}.pictures")) for part in self.parts],
            "all": all_of_it,
        }
        self.child = self._start("match", about)

    def _place(self) -> None:
        """Gives the samples of all drops that were matched their roles: they are ready, and decided on next."""
        with self.journal.begin() as connection:
            matched = connection.execute(select(drops).where(drops.c.state == "matching").order_by(drops.c.id)).all()
            shares = self.config.settings.roles
            by_role: dict[Role, float] = {"train": shares.train, "tune": shares.tune, "judge": shares.judge}
            for row in matched:
                placing.place(connection, row.id, by_role)
            connection.execute(update(drops).where(drops.c.state == "matching").values(state="ready"))
        self.unmatched = False
        self._leave()
        for row in matched:
            said = f"drop {row.id}: {row.added} images, {row.gone} gone, {row.rejected} rejected"
            log.info(said)
            if row.added or row.gone:
                self.tell(said)

    def _leave(self) -> None:
        """The drop, if any, is done with."""
        self.crew.dismiss()
        if self.drop is not None and self.drop.folder not in self.config.folders:  # it was taken out meanwhile
            leave_folders(self.journal, but=self.config.folders)
        for file in (self.config.state / "drops").glob(self._file("*").name):
            file.unlink(missing_ok=True)
        self.drop, self.parts = None, []

    def _start(self, kind: Kind, about: dict[str, Any]) -> Child:
        child = self.crew.give(kind, about, self._file("job"))
        self._heard = time.monotonic()
        self.sources.fire_at(now() + PATIENCE_SECONDS, "reading")
        return child

    def _file(self, name: str) -> Path:
        """What passes between the reader and its children, as long as the drop is read."""
        return self.config.state / "drops" / f"{self.drop.id if self.drop else 0}.{name}"

    def _is_anything_unmatched(self) -> bool:
        """Drops that were read and not matched, or samples without any index."""
        with self.journal.connect() as connection:
            waiting = connection.execute(select(drops.c.id).where(drops.c.state == "matching").limit(1)).first()
            known = connection.execute(select(drops.c.id).limit(1)).first()
        return waiting is not None or (known is not None and not (self.config.state / "duplicates").exists())

    # --- trouble -----------------------------------------------------------------------------------------------------

    def _look_for_the_culprit(self, part: Part, status: int, last_words: str) -> None:
        """The file at which a child ended is tried alone, and refused where that ends a child again."""
        assert self.drop is not None
        if part.alone:
            self.drop.refuse([part.convict()], why(status, last_words), again=status == -signal.SIGKILL)
        else:
            part.suspect(self._file(f"{part.number}.at"))

    def stop_overdue(self) -> None:
        """Stops a child that has said nothing for too long: a file that hangs it is found as one that crashes it."""
        if not self.children:
            return
        silent = time.monotonic() - self._heard
        if silent >= PATIENCE_SECONDS:
            log.warning("the reader has said nothing for %.0f s: it is stopped", PATIENCE_SECONDS)
            self.crew.dismiss()  # who stopped one may have stopped them, too
            for child in self.children:
                child.stop(grace_seconds=5.0)
        else:
            self.sources.fire_at(now() + PATIENCE_SECONDS - silent, "reading")

    def _give_up(self, last_words: str) -> None:
        """The store takes nothing: what has been read counts, the rest is tried again."""
        assert self.drop is not None
        unread = sum(len(part.unread) for part in self.parts)
        if not unread:
            return  # the other child has said so already
        log.error(
            "drop %d: %d files are not read, the store cannot be written (%s); it is tried again in %g s",
            self.drop.id,
            unread,
            "".join(last_words.strip().splitlines()[-1:]),
            TROUBLE_SECONDS,
        )
        for part in self.parts:
            part.unread = []
        self.sources.fire_at(now() + TROUBLE_SECONDS, "after trouble")

    def _look_again(self, folder: Path, paths: list[str]) -> None:
        if paths:
            self.sources.touch(folder, *(folder / path for path in paths))
