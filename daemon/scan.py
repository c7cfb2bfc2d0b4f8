"""What a watched folder holds, compared with what the journal knows of it: the scan is the truth.

Both sides come in the order of their paths and are merged, so that a scan of a million files takes no more memory
than the largest folder. Nothing is opened here: a file is what its size and its times say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, select, union_all

from daemon.journal import chunks
from daemon.schema import manifests, occurrences, rejections
from daemon.walk import UNREADABLE, File, Stat, Walk, stat_of, text
from daemon.watched import Watched

Records = Generator[tuple[str, Stat], None, None]  # what the journal knows: paths and what they were


@dataclass(slots=True)
class Difference:
    """What a folder holds, compared with what the journal knows of it. Paths are below the folder."""

    read: list[str] = field(default_factory=list)  # new, or changed
    gone: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)  # of those to be read: changed since they were read before
    fresh: list[str] = field(default_factory=list)  # changed a moment ago: to be looked at again
    unnamable: list[str] = field(default_factory=list)  # new, and their names are not text
    closed: dict[str, str] = field(default_factory=dict)  # folders that cannot be listed, as is not known yet, and why
    shut: frozenset[str] = frozenset()  # all that cannot be
    manifest: bool = False  # it is new, or changed
    links: bool = False  # some lead to folders: notification tells nothing of what lies behind them

    def __bool__(self) -> bool:
        return bool(self.read or self.gone or self.unnamable or self.closed or self.manifest)


def compare(
    connection: Connection,
    watched: Watched,
    paths: Iterable[Path] | None,
    settle_seconds: float,
    writing: Collection[Path] = (),
) -> Difference:
    """Compares the folder (or just these paths in it) with the journal.

    writing: files that are being written at this moment: they are told of when they are closed.
    A folder that is missing or entirely empty while files of it are known is taken to be away (unmounted), not
    emptied: raises FileNotFoundError. What is below a folder that cannot be listed stays as it is known.
    """
    look = _Look(watched, writing, None if paths is not None else time.time() - settle_seconds)
    starts = [watched.folder] if paths is None or _is_away(watched.folder) else look.walk.choose(paths)
    for start, known in _known(connection, watched.folder, starts):
        with closing(known):  # what is left unread would hold the journal at this moment, for whom it meets next
            look.at(start, known)
    difference = look.difference
    difference.links = look.walk.links
    hidden = tuple(f"{text(path)}/" if path else "" for path in look.walk.away)
    there = {text(path) for path in difference.unnamable}
    known_already = there.intersection(difference.gone)  # escaped it has another place in the order
    if os.path.lexists(watched.folder / watched.manifest):  # what is known to be wrong with it stays
        there.add(watched.manifest)
    difference.shut = frozenset(look.walk.closed)
    rejected = set(difference.gone)  # of such a folder that it was rejected
    difference.closed = {path: why for path, why in look.walk.closed.items() if path and text(path) not in rejected}
    gone = dict.fromkeys(difference.gone)  # each once, whatever is known of it
    difference.gone = [path for path in gone if not f"{path}/".startswith(hidden) and path not in there]
    difference.unnamable = [path for path in difference.unnamable if text(path) not in known_already]
    difference.manifest = _is_manifest_changed(connection, watched, look.writing)
    return difference


def _is_away(folder: Path) -> bool:
    """Whether nothing at all is there: what notification says of its files is no news of them then."""
    try:
        with os.scandir(folder) as entries:
            return not any(entries)
    except OSError:
        return True


class _Look:
    """One comparison: merges what is there with what is known, path by path."""

    def __init__(self, watched: Watched, writing: Collection[Path], settled_before: float | None) -> None:
        self.watched = watched
        self.folder = str(watched.folder)
        self.writing = {str(path) for path in writing}
        self.settled_before = settled_before  # None: what is looked at is known to have settled
        self.difference = Difference()
        self.walk = Walk(watched.folder)

    def at(self, start: Path, known: Iterator[tuple[str, Stat]]) -> None:
        there = self._named(self.walk.files(start))
        file, record = next(there, None), next(known, None)
        nothing = not (file or self.difference.unnamable or self._has_manifest())
        if start == self.watched.folder and record and nothing:
            how = f"cannot be looked into ({self.walk.closed['']})" if "" in self.walk.closed else "is empty or away"
            raise FileNotFoundError(f"{start}: {how}; what is known of its files stays as it is")
        while file or record:
            if file and record and file.path == record[0]:
                self._meet(file, record[1])
                file, record = next(there, None), next(known, None)
            elif record is None or (file and file.path < record[0]):
                assert file is not None
                self._meet(file, None)
                file = next(there, None)
            else:
                self.difference.gone.append(record[0])
                record = next(known, None)

    def _has_manifest(self) -> bool:
        return bool(self.watched.manifest) and os.path.lexists(f"{self.folder}/{self.watched.manifest}")

    def _meet(self, file: File, known: Stat | None) -> None:
        full = f"{self.folder}/{file.path}"
        if known is None and self.settled_before is None:  # it is looked at when it is read
            if full not in self.writing:
                self.difference.read.append(file.path)
            return
        if (found := self.walk.look(file)) is None:
            if known is not None:
                self.difference.gone.append(file.path)
            return
        unreadable = known == UNREADABLE and not os.access(full, os.R_OK)
        if known == stat_of(found) or unreadable or full in self.writing:
            return
        if known is not None:
            self.difference.known.add(file.path)
        fresh = self.settled_before is not None and found.st_ctime > self.settled_before
        (self.difference.fresh if fresh else self.difference.read).append(file.path)

    def _named(self, files: Iterator[File]) -> Iterator[File]:
        """Those whose names are text; the others are put aside, since their order is not the journal's."""
        for file in files:
            if file.path == text(file.path):
                if self.watched.is_image(file.path):
                    yield file
                continue
            self.difference.unnamable.append(file.path)


def _known(connection: Connection, folder: Path, starts: list[Path]) -> Iterator[tuple[Path, Records]]:
    """What is known at each start and below it, in the order of the paths."""
    files = [start for start in starts if os.path.isfile(start)]  # noqa: PTH113  (it raises for no odd name)
    for some in chunks(files):
        names = {start: text(str(start.relative_to(folder))) for start in some}
        known = dict(_records(connection, folder, among=names.values()))
        for start, name in names.items():
            yield start, ((name, known[name]) for _ in range(name in known))
    alone = set(files)
    for start in starts:
        if start == folder:
            yield start, _records(connection, folder)
        elif start not in alone:
            yield start, _records(connection, folder, below=text(str(start.relative_to(folder))))


def _records(
    connection: Connection, folder: Path, *, among: Collection[str] | None = None, below: str | None = None
) -> Records:
    parts = []
    for table in (occurrences, rejections):
        part = select(table.c.path, table.c.size, table.c.mtime_ns)
        part = part.where(table.c.folder == str(folder), table.c.gone.is_(None))
        if among is not None:
            part = part.where(table.c.path.in_(among))
        if below is not None:  # "0" follows "/"
            part = part.where((table.c.path == below) | (table.c.path > f"{below}/") & (table.c.path < f"{below}0"))
        parts.append(part)
    query = union_all(*parts).order_by("path").execution_options(yield_per=1000)
    with connection.execute(query) as rows:
        for path, size, mtime in rows:
            yield path, (size, mtime)


def _is_manifest_changed(connection: Connection, watched: Watched, writing: Collection[str]) -> bool:
    if not watched.manifest or str(watched.folder / watched.manifest) in writing:
        return False
    table = manifests
    query = select(table.c.size, table.c.mtime_ns).where(
        table.c.folder == str(watched.folder), table.c.path == watched.manifest
    )
    known = connection.execute(query).first()
    file = watched.folder / watched.manifest
    try:
        found = file.stat()
    except OSError:
        return False  # one that is away says nothing: what it said stands
    if known is not None and tuple(known) == UNREADABLE:
        return os.access(file, os.R_OK)
    return known is None or tuple(known) != stat_of(found)
