"""The user's files, opened for reading: regular ones that lie in the watched folder, and nothing else, ever."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

HELD = os.O_PATH | os.O_CLOEXEC  # takes hold of what a path leads to without opening it
READ = os.O_RDONLY | os.O_CLOEXEC
DESCRIPTORS = "/proc/self/fd"  # what this process holds, as links to where it lies


class Unusable(Exception):
    """A file that cannot be used, and why; as it was `found` it is not looked at again."""

    def __init__(self, reason: str, found: os.stat_result | None = None) -> None:
        super().__init__(reason)
        self.found = found


class Originals:
    """Opens the files below a folder. It keeps hold of the folder that the last one lay in, until it is let go."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.home = os.path.realpath(folder)
        self._descriptors = os.open(DESCRIPTORS, HELD)  # a microsecond less a look than by its path
        self._above: str | None = None
        self._held: int | None = None

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """A file descriptor, and what the file was when it was opened. Raises Unusable, OSError."""
        above, _, name = path.rpartition("/")
        if above != self._above:
            self.let_go()
            self._above, self._held = above, self._hold(above)
        if self._held is not None:
            held = os.open(name, HELD | os.O_NOFOLLOW, dir_fd=self._held)
            try:
                found = os.fstat(held)
                if not stat.S_ISLNK(found.st_mode) and self._lies_within(held):
                    _refuse_odd(found)
                    return os.open(str(held), READ, dir_fd=self._descriptors), found
            finally:
                os.close(held)
        return open_within(f"{self.folder}/{path}", self.home)

    def let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
        self._above = self._held = None

    def _hold(self, above: str) -> int | None:
        """The folder; None where there is none: then each file is told what is wrong with it."""
        try:
            return os.open(f"{self.folder}/{above}", HELD | os.O_DIRECTORY)
        except OSError:
            return None

    def _lies_within(self, held: int) -> bool:
        """Asked of each file: the folder that is held may have been moved out meanwhile."""
        real = os.readlink(str(held), dir_fd=self._descriptors)
        return lies_below(real, self.home)


def open_within(file: str, home: str) -> tuple[int, os.stat_result]:
    """Opens a file that lies below `home`, whatever links lead to it: what it is, and as what it was found.

    What is held and then opened cannot be another any more. Raises Unusable, OSError.
    """
    try:
        held = os.open(file, HELD)
    except FileNotFoundError:
        if os.path.islink(file):  # noqa: PTH114
            raise Unusable("is a link to nothing") from None
        raise
    try:
        found, real = os.fstat(held), _real(held)
        if not lies_below(real, home):
            raise Unusable(f"is a link out of the watched folder, to {real}", found)
        return _open(held, found), found
    finally:
        os.close(held)


def open_regular(file: str) -> tuple[int, os.stat_result]:
    """As `open_within`, wherever it lies: for those that know by its hash what they look for."""
    held = os.open(file, HELD)
    try:
        found = os.fstat(held)
        return _open(held, found), found
    finally:
        os.close(held)


def stream_within(file: str, home: str) -> BinaryIO:
    """As `open_within`."""
    return open(open_within(file, home)[0], "rb")  # noqa: PTH123  (a descriptor, not a path)


def lies_below(path: str, home: str) -> bool:
    """Of real paths, "/" among them."""
    return path.startswith(home if home == "/" else f"{home}/")


def _real(held: int) -> str:
    return os.readlink(f"{DESCRIPTORS}/{held}")  # noqa: PTH115  (as fast as can be)


def _open(held: int, found: os.stat_result) -> int:
    _refuse_odd(found)
    return os.open(f"{DESCRIPTORS}/{held}", READ)


def _refuse_odd(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise Unusable("is a link to a folder that holds it, or behind another link: it is not followed", found)
    if not stat.S_ISREG(found.st_mode):
        raise Unusable("is no regular file (a device, pipe or socket is never opened)", found)
    if found.st_size == 0:
        raise Unusable("is empty", found)
