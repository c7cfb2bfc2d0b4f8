"""The files below a watched folder, in the order of their paths, a folder at a time in memory.

Names that begin with a dot are passed over. A link to a folder is followed where it leads to one within the watched
folder, and never from behind another link: what cannot be followed is told as a file, for the reader to refuse.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from daemon.originals import lies_below

Stat = tuple[int, int]  # size, mtime in nanoseconds
UNREADABLE: Stat = (-1, -1)  # of a file that may not be read: a change of its mode changes neither size nor mtime
LATEST = 2**63 - 1  # nanoseconds: a journal holds no later date, which file systems do
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class File(NamedTuple):
    path: str  # below the watched folder
    entry: os.DirEntry[str] | None = None


class Walk:
    """One walk; `away` gathers what is there and may not be looked at, `closed` the folders among it, each with why.

    `links` is whether any leads to a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._at = str(folder)
        self.away: list[str] = []
        self.closed: dict[str, str] = {}
        self.links = False

    def choose(self, paths: Iterable[Path]) -> list[Path]:
        """Where to look for these paths: not at hidden ones, nor behind links, nor twice where one holds another."""
        shown = (path for path in paths if not any(part[0] == "." for part in path.relative_to(self.folder).parts))
        chosen = {self._up_to_a_link(path) for path in shown}
        return sorted(path for path in chosen if chosen.isdisjoint(path.parents))

    def files(self, start: Path) -> Iterator[File]:
        path = "" if start == self.folder else str(start.relative_to(self.folder))
        try:
            folder = start.is_dir()
        except OSError:  # what is above it may not be entered
            self.away.append(path)
            return
        if folder and (not path or not start.is_symlink() or self._leads_to_a_folder_within(str(start))):
            yield from self._walk_folder(path, linked=bool(path) and start.is_symlink())
        elif os.path.lexists(start):
            yield File(path)

    def _walk_folder(self, path: str, *, linked: bool) -> Iterator[File]:
        """The files below a folder in the order of their paths; linked: a link was followed to come here.

        Without recursion: folders may be nested deeper than Python's stack.
        """
        stack = [(f"{path}/" if path else "", linked, iter(self._list(path, linked)))]
        while stack:
            prefix, linked, entries = stack[-1]
            entry, folder = next(entries, (None, False))
            if entry is None:
                stack.pop()
            elif folder:
                at, behind = prefix + entry.name, linked or entry.is_symlink()
                stack.append((f"{at}/", behind, iter(self._list(at, behind))))
            else:
                yield File(prefix + entry.name, entry)

    def _list(self, path: str, linked: bool) -> list[tuple[os.DirEntry[str], bool]]:
        """What the folder holds, each with whether it is a folder to be walked."""
        try:
            with os.scandir(f"{self._at}/{path}" if path else self._at) as scanned:
                entries = [(entry, self._is_folder(entry, linked)) for entry in scanned if entry.name[0] != "."]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:  # no right to it, or its path is longer than a path may be
            self.away.append(path)
            self.closed[path] = str(error.strerror)
            return []
        return sorted(entries, key=lambda pair: f"{pair[0].name}/" if pair[1] else pair[0].name)

    def _is_folder(self, entry: os.DirEntry[str], linked: bool) -> bool:
        """Links to folders are followed where they lead to one within, once: never a link behind a link."""
        if not entry.is_symlink():
            return entry.is_dir()
        return not linked and self._leads_to_a_folder_within(entry.path)

    def _leads_to_a_folder_within(self, link: str) -> bool:
        """Whether it leads to a folder that is watched anyway, and not to one that holds the link itself."""
        try:
            real, home = os.path.realpath(link, strict=True), os.path.realpath(self._at)
        except OSError:
            return False
        around = f"{os.path.realpath(Path(link).parent)}/"
        within = lies_below(real, home) and not around.startswith(f"{real}/") and Path(real).is_dir()
        self.links |= within
        return within

    def _up_to_a_link(self, start: Path) -> Path:
        """The first link on the way to this path that is not followed; the path itself where there is none."""
        parts = start.relative_to(self.folder).parts
        way = (self.folder.joinpath(*parts[:depth]) for depth in range(1, len(parts)))
        links = [path for path in way if path.is_symlink()]
        if links and self._leads_to_a_folder_within(str(links[0])):
            del links[0]
        return links[0] if links else start

    def look(self, file: File) -> os.stat_result | None:
        """What a file is, behind a link too. None: it is gone, or may not be looked at, and counts as away then."""
        full = f"{self._at}/{file.path}"
        try:
            return file.entry.stat() if file.entry else Path(full).stat()
        except OSError:
            return self._stat_link(full, file.path)  # one to nothing, or to itself

    def _stat_link(self, full: str, path: str) -> os.stat_result | None:
        with suppress(FileNotFoundError):
            try:
                found = os.lstat(full)
            except PermissionError:
                self.away.append(path)
            else:
                if stat.S_ISLNK(found.st_mode):
                    return found
                self.away.append(path)
        return None


def stat_of(found: os.stat_result) -> Stat:
    """What tells whether a file has changed, as the journal can hold it."""
    return found.st_size, max(min(found.st_mtime_ns, LATEST), -LATEST)


def text(path: str) -> str:
    """The path as the journal can hold it: bytes that are not UTF-8, and control characters, are written as \\xNN.

    A line break in a class's name would be two lines of Triton's labels.
    """
    if path.isascii() and path.isprintable():
        return path
    decoded = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", decoded)
