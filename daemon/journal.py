"""The journal: one SQLite file that remembers everything, opened here and nowhere else.

WAL, so that commands read while the daemon writes; foreign keys enforced; one writer, the daemon (and short
requests from the command line). Queries stand in the modules that own the words they ask about.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row, Table, create_engine, event, insert, select, update
from sqlalchemy.engine.interfaces import DBAPIConnection

from daemon import schema, standings
from daemon.errors import NotFound, RelearnError, WrongJournal

HEAD = "0015"  # the newest migration; a test holds it to the folder

AnyRow = Row[Any]
Value = TypeVar("Value")
IN_ONE = 500  # values in one query


def open_journal(state: Path, *, migrate: bool = False) -> Engine:
    """The journal of a state folder; with `migrate`, made or brought to the newest form first.

    Raises WrongJournal where another version of relearnd wrote it, NotFound where there is none yet.
    """
    file = state / "journal.db"
    if not migrate and not file.exists():
        raise NotFound(f"{file}: there is no journal yet; `relearn run` makes it")
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 30})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "commit", standings.refresh)
    found = revision(file)
    if found == HEAD:
        return engine
    if not migrate:
        engine.dispose()
        raise _wrong_revision(file, found)
    _migrate(engine, file, found)
    return engine


def migrate_apart(state: Path) -> None:
    """Makes the journal, or brings it to the newest form, in a process of its own, where that is to be done.

    Alembic then stays out of this process's memory, of which it takes 15 MB for good. What is wrong with the journal is
    for `open_journal` to say.
    """
    if revision(state / "journal.db") != HEAD:
        command = [sys.executable, "-P", "-m", "daemon.journal", str(state)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def revision(file: Path) -> str | None:
    """The migration that a journal stands at, read without Alembic (which takes a while to load)."""
    if not file.exists() or file.stat().st_size == 0:
        return None
    with sqlite3.connect(file, timeout=30) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError as error:
            if "no such table" in str(error):
                return None
            how = "start the daemon anew, or restore it from a backup"
            raise RelearnError(f"{file}: cannot be read ({error}); {how}") from None
    connection.close()
    return row[0] if row else None


def _migrate(engine: Engine, file: Path, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if found is not None:
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found not in known:
            raise _wrong_revision(file, found)
        _back_up(file, file.with_name(f"journal.before-{HEAD}.db"))
    with engine.connect() as connection:
        # The driver begins no transaction before DDL by itself; killed in the midst, nothing of it must stay.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _back_up(file: Path, copy: Path) -> None:
    """A copy with all that was committed: some of it may stand in the write-ahead log yet."""
    with closing(sqlite3.connect(file, timeout=30)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _wrong_revision(file: Path, found: str | None) -> WrongJournal:
    if found is None or found < HEAD:
        return WrongJournal(f"{file}: is of an older relearnd; `relearn run` brings it up to date")
    return WrongJournal(f"{file}: was written by a newer relearnd ({found}); this one knows {HEAD}: upgrade it")


def _on_connect(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def begin_writing(connection: Connection) -> None:
    """From here on nobody else writes until the transaction ends: the driver begins one with the first write alone."""
    raw = connection.connection.driver_connection
    if isinstance(raw, sqlite3.Connection) and not raw.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def now() -> float:
    """Seconds since the epoch; the one clock of what is written down."""
    return time.time()


def chunks(values: Iterable[Value]) -> Iterator[list[Value]]:
    """So many at a time as one query may name."""
    listed = list(values)
    return (listed[start : start + IN_ONE] for start in range(0, len(listed), IN_ONE))


def add(connection: Connection, table: Table, **values: Any) -> int:
    """Inserts a row and returns its id."""
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0]) if isinstance(key[0], int) else 0


def add_many(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Inserts rows given as the values of these columns, straight through the driver: a third of what it takes
    otherwise. Nothing is converted on the way, and what only Python knows for a default is not put in."""
    columns = ", ".join(f'"{table.c[name].name}"' for name in names)
    if rows:
        places = ", ".join("?" * len(names))
        connection.exec_driver_sql(f'INSERT INTO "{table.name}" ({columns}) VALUES ({places})', list(rows))


def change(connection: Connection, table: Table, row: int | str, **values: Any) -> None:
    """Updates one row by its id."""
    connection.execute(update(table).where(table.c.id == row).values(**values))


def claim(connection: Connection, table: Table, row: int | str, old: str, new: str, **values: Any) -> bool:
    """Compare-and-set of a row's state. False: the state was no longer the old one, another has it."""
    claimed = update(table).where(table.c.id == row, table.c.state == old).values(state=new, **values)
    return connection.execute(claimed).rowcount == 1


def get(connection: Connection, table: Table, row: int | str) -> AnyRow:
    """One row by its id. Raises NotFound."""
    found = connection.execute(select(table).where(table.c.id == row)).first()
    if found is None:
        raise NotFound(f"the journal has no {table.name[:-1]} {row!r}")
    return found


__all__ = [
    "HEAD",
    "AnyRow",
    "add",
    "add_many",
    "begin_writing",
    "change",
    "chunks",
    "claim",
    "get",
    "now",
    "open_journal",
    "revision",
    "schema",
]

if __name__ == "__main__":  # of `migrate_apart`
    open_journal(Path(sys.argv[1]), migrate=True).dispose()
