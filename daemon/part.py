"""The files of a drop that one child reads, and the search among them for one that ends its reader.

A child notes at which file it is (daemon/decode.py). Where one ends, that file is tried alone by the next, and refused
where it ends this, too; all others are read as if nothing had been.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path

from daemon.children import Child


@dataclass(slots=True)
class Part:
    """One child's share of a drop."""

    number: int
    unread: list[str]
    given: list[str] = field(default_factory=list)  # to its child: what the child's numbers mean
    alone: bool = False  # the first of them has ended a child: it is tried by itself
    child: Child | None = None

    def give(self) -> list[str]:
        """What the next child is to read."""
        self.given = self.unread[:1] if self.alone else self.unread
        return self.given

    def take(self, read: int) -> None:
        """So many files were read, in the order in which they were given."""
        self.unread = self.unread[read:]

    def suspect(self, at: Path) -> None:
        """The file at which the child ended comes next, by itself; its number stands in `at`, if anywhere."""
        number = int(at.read_bytes() or 0) if at.exists() else 0
        read = len(self.given) - len(self.unread)  # of those that the child was given
        culprit = self.given[max(number, read)]
        self.unread = [culprit, *(path for path in self.unread if path != culprit)]
        self.alone = True

    def convict(self) -> str:
        """The file that was tried alone and ended its child again: it is not read."""
        self.alone = False
        return self.unread.pop(0)


def why(status: int, last_words: str) -> str:
    """What is said of a file that ends the process that reads it."""
    if status == -signal.SIGALRM:
        return "takes too long to decode"
    words = next(reversed(last_words.strip().splitlines()), "killed")
    return f"crashed the process that read it: {words}"
