"""Copies that the store has lost (a damaged disk, a person's rm), and the files that they are made from again."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path

from sqlalchemy import Connection, bindparam, select, update

from daemon.schema import occurrences, samples
from daemon.walk import UNREADABLE

AT_ONCE = 10_000  # rows that are read ahead
FEW = 64  # folders, and files, that are looked at


def read_again(connection: Connection, store: Path, *, copies: bool, suspects: Collection[bytes] = ()) -> list[Path]:
    """The files of all copies that are missing or suspect: each is new to the next look at it, which copies it again.

    copies: the store is to hold copies, and links in it are none; otherwise links that lead to nothing are none.
    A sample whose files are gone, too, is in no new snapshot once a scan has found that: nothing has to be done for it.
    """
    table = occurrences
    query = (
        select(samples.c.sha256, table.c.id, table.c.folder, table.c.path)
        .join(table, table.c.sample_id == samples.c.id)
        .where(table.c.gone.is_(None), samples.c.forgotten.is_(None))
        .order_by(samples.c.sha256)
        .execution_options(yield_per=AT_ONCE)
    )
    lost: list[int] = []
    files: list[Path] = []
    for first, rows in groupby(connection.execute(query), key=lambda row: row.sha256[:1]):
        there = _list(store / first.hex(), copies=copies)
        for sha, id_, folder, path in rows:
            missing = sha.hex() not in there or sha in suspects
            if missing and os.path.lexists(os.path.join(folder, path)):  # noqa: PTH118  (any name)
                lost.append(id_)
                files.append(Path(folder, path))
    if lost:
        size, mtime = UNREADABLE  # as what could not be read before, and may be by now
        again = update(table).where(table.c.id == bindparam("lost")).values(size=size, mtime_ns=mtime)
        connection.execute(again, [{"lost": id_} for id_ in lost])
    return files


def holds_links(store: Path) -> bool:
    """Whether the store was one of references: all that came then are links, so that a few tell."""
    files = (file for folder in sorted(store.glob("[0-9a-f][0-9a-f]"))[:FEW] for file in folder.iterdir())
    return any(file.is_symlink() for file in islice(files, FEW))


def _list(folder: Path, *, copies: bool) -> set[str]:
    with suppress(FileNotFoundError):
        return {file.name for file in folder.iterdir() if (not file.is_symlink() if copies else file.exists())}
    return set()
