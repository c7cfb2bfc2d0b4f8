"""What a manifest says of images, by path, kept on disk: ten million rows take no more memory than ten.

Nothing of it outlives the child that reads the manifest (daemon/manifest.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

Row = tuple[str, str | None, str | None]  # path, label, group
MADE = """
    PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;
    CREATE TABLE said (path TEXT PRIMARY KEY, line INTEGER, label TEXT, key TEXT) WITHOUT ROWID;
    BEGIN;
"""
UNMENTIONED = """
    SELECT path, NULL, NULL FROM journal.occurrences
    WHERE folder = ? AND gone IS NULL AND class IS NOT NULL AND path NOT IN (SELECT path FROM said)
"""


class Said:
    """The rows in a file, which is made anew. Raises sqlite3.Error where the disk refuses."""

    def __init__(self, file: Path) -> None:
        file.unlink(missing_ok=True)  # of a reading that was cut off
        self._connection = sqlite3.connect(file.absolute().as_uri(), uri=True, isolation_level=None)
        self._connection.executescript(MADE)

    def add(self, line: int, row: Row) -> tuple[int, str | None, str | None] | None:
        """Keeps a row, unless its path is known: in which line what was said of it, then (line, label, group)."""
        path, label, group = row
        kept = self._connection.execute("INSERT OR IGNORE INTO said VALUES (?, ?, ?, ?)", (path, line, label, group))
        if kept.rowcount:
            return None
        known = self._connection.execute("SELECT line, label, key FROM said WHERE path = ?", (path,)).fetchone()
        return known[0], known[1], known[2]

    def clear(self, path: str) -> None:
        """It has neither class nor group."""
        self._connection.execute("UPDATE said SET label = NULL, key = NULL WHERE path = ?", (path,))

    def rows(self) -> Iterator[Row]:
        """In the order of their paths."""
        yield from self._connection.execute("SELECT path, label, key FROM said ORDER BY path")

    def unmentioned(self, journal: Path, folder: str) -> Iterator[Row]:
        """The images of the folder that have a class by the journal, and of which nothing is said: they have none."""
        self._connection.execute("COMMIT")
        self._connection.execute("ATTACH ? AS journal", (f"{journal.absolute().as_uri()}?mode=ro",))
        yield from self._connection.execute(UNMENTIONED, (folder,))

    def close(self) -> None:
        self._connection.close()
