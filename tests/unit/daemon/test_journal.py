"""The journal: its migrations give what schema.py says; a newer one is refused, an older one backed up first."""

from __future__ import annotations

import importlib
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, exc, select, text

from daemon import journal as module
from daemon import schema
from daemon.errors import NotFound, RelearnError, WrongJournal
from daemon.journal import HEAD, add, change, claim, get, migrate_apart, open_journal, revision

MIGRATIONS = Path(module.__file__).parent / "migrations"
STANDINGS = "daemon.migrations.versions.0008_standings"
NOTICES = "daemon.migrations.versions.0012_notices"
OLD_ROWS = """
    INSERT INTO drops (id, folder, state, started, added, gone, rejected) VALUES
        (1, '/images', 'ready', 1, 0, 0, 0), (2, '/images', 'held', 1, 0, 0, 0);
    INSERT INTO groups (id, key, role, given) VALUES (1, 'a', 'train', 1), (2, 'b', 'judge', 1);
    INSERT INTO samples (id, sha256, bytes, width, height, mode, group_id, first_seen, forgotten)
        SELECT value, randomblob(32), 9, 8, 8, 'RGB', CASE value WHEN 3 THEN 2 WHEN 6 THEN NULL ELSE 1 END, 1,
        CASE value WHEN 8 THEN 2 END FROM json_each('[1, 2, 3, 4, 5, 6, 7, 8, 9]');
    INSERT INTO occurrences (folder, path, sample_id, class, size, mtime_ns, drop_id, first_seen, gone)
        SELECT '/images', value, value, CASE value WHEN 3 THEN 'dog' WHEN 6 THEN NULL ELSE 'cat' END, 9, 1,
        CASE value WHEN 4 THEN 2 ELSE 1 END, 1, CASE value WHEN 7 THEN 2 END
        FROM json_each('[1, 2, 3, 4, 5, 6, 7, 8, 9]');
    INSERT INTO occurrences (folder, path, sample_id, class, size, mtime_ns, drop_id, first_seen)
        VALUES ('/images', 'again', 2, 'dog', 9, 1, 1, 1);
    INSERT INTO labels (sample_id, class, source, by, at) VALUES (9, 'dog', 'review', 'a person', 2);
    INSERT INTO flags (sample_id, given, suggested, score, suggested_score, model_id, at, state)
        VALUES (5, 'cat', 'dog', 0.001, 0.99, 'm', 1, 'open');
"""
DROP = {"folder": "/images", "state": "reading", "started": 1.0, "added": 0, "gone": 0, "rejected": 0}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def journal(state: Path) -> Engine:
    return open_journal(state, migrate=True)


def test_the_migrations_give_the_schema(journal: Engine) -> None:
    with journal.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_head_is_the_newest_migration(state: Path, journal: Engine) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]
    assert revision(state / "journal.db") == HEAD


def test_a_journal_made_apart_leaves_alembic_out_of_this_process(state: Path) -> None:
    words = "; ".join((
        "import sys, pathlib",
        "from daemon.journal import migrate_apart, open_journal",
        "state = pathlib.Path(sys.argv[1])",
        "migrate_apart(state)",
        "open_journal(state, migrate=True)",
        "sys.exit('alembic' in sys.modules)",
    ))  # fmt: skip
    subprocess.run([sys.executable, "-c", words, str(state)], check=True)
    assert revision(state / "journal.db") == HEAD


def test_what_is_wrong_with_a_journal_is_said_when_it_is_opened(state: Path, journal: Engine) -> None:
    with journal.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrate_apart(state)
    assert revision(state / "journal.db") == "9999"
    with pytest.raises(WrongJournal, match="newer relearnd"):
        open_journal(state, migrate=True)


def test_a_journal_opens_again_as_it_was(state: Path, journal: Engine) -> None:
    with journal.begin() as connection:
        drop = add(connection, schema.drops, **DROP)
    with open_journal(state).connect() as connection:
        assert get(connection, schema.drops, drop).folder == "/images"


def test_wal_foreign_keys_and_full_sync_hold_on_every_connection(journal: Engine) -> None:
    with journal.connect() as one, journal.connect() as other:
        for connection in (one, other):
            said = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in PRAGMAS]
            assert said == list(PRAGMAS.values())


PRAGMAS = {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2}


def test_a_row_that_points_nowhere_is_refused(journal: Engine) -> None:
    values = {"folder": "/images", "path": "a/b.png", "size": 1, "mtime_ns": 1, "reason": "", "at": 1.0}
    with pytest.raises(exc.IntegrityError), journal.begin() as connection:
        add(connection, schema.rejections, drop_id=12345, **values)


def test_a_failed_transaction_leaves_nothing(journal: Engine) -> None:
    def fail() -> None:
        with journal.begin() as connection:
            add(connection, schema.drops, **DROP)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with journal.connect() as connection:
        assert connection.execute(select(schema.drops)).all() == []


def test_commands_read_while_the_daemon_writes(state: Path, journal: Engine) -> None:
    with journal.begin() as connection:
        add(connection, schema.drops, **DROP)
        with open_journal(state).connect() as reader:
            assert reader.execute(select(schema.drops)).all() == []


def test_claim_is_won_once(journal: Engine) -> None:
    with journal.begin() as connection:
        drop = add(connection, schema.drops, **DROP)
        assert claim(connection, schema.drops, drop, "reading", "ready", ended=2.0)
        assert not claim(connection, schema.drops, drop, "reading", "ready", ended=3.0)
        row = get(connection, schema.drops, drop)
        assert (row.state, row.ended) == ("ready", 2.0)
        change(connection, schema.drops, drop, added=5)
        assert get(connection, schema.drops, drop).added == 5


def test_what_is_missing_is_named(state: Path, tmp_path: Path, journal: Engine) -> None:
    with journal.connect() as connection, pytest.raises(NotFound, match="no drop 7"):
        get(connection, schema.drops, 7)
    with pytest.raises(NotFound, match="there is no journal yet; `relearn run` makes it") as caught:
        open_journal(tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "journal.db").exists()


def stamp(state: Path, version: str) -> None:
    with closing(sqlite3.connect(state / "journal.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))


@pytest.mark.parametrize("migrate", [False, True])
def test_a_newer_journal_is_refused_and_left_alone(state: Path, journal: Engine, migrate: bool) -> None:
    stamp(state, "9999")
    with pytest.raises(WrongJournal, match=r"written by a newer relearnd \(9999\)") as caught:
        open_journal(state, migrate=migrate)
    assert caught.value.exit_code == 2
    assert revision(state / "journal.db") == "9999"


def test_an_older_journal_is_brought_up_by_the_daemon_alone(state: Path, journal: Engine) -> None:
    stamp(state, "0000")
    with pytest.raises(WrongJournal, match="`relearn run` brings it up to date"):
        open_journal(state)


def test_a_migration_that_is_cut_off_leaves_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the daemon is killed in its first moment: the next start begins anew."""

    class Killed(BaseException):
        pass

    create, made = Operations.create_table, []

    def cut_off(operations: Operations, name: str, *columns: Any, **options: Any) -> Any:
        if len(made) == 3:
            raise Killed
        made.append(name)
        return create(operations, name, *columns, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Operations, "create_table", cut_off)
        with pytest.raises(Killed):
            open_journal(tmp_path, migrate=True)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as left:
        assert left.execute("SELECT name FROM sqlite_master").fetchall() == []
    open_journal(tmp_path, migrate=True).dispose()
    assert revision(tmp_path / "journal.db") == HEAD


def test_before_a_migration_all_is_backed_up(state: Path, journal: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what stands in the write-ahead log alone, as it does after a crash or while another process reads."""
    with journal.begin() as connection:
        drop = add(connection, schema.drops, **DROP)
        monkeypatch.setattr(module, "HEAD", "9999")  # as if this were the next release
    with journal.connect() as reader:
        reader.execute(select(schema.drops)).all()
        assert (state / "journal.db-wal").stat().st_size > 0
        open_journal(state, migrate=True)
    with closing(sqlite3.connect(state / "journal.before-9999.db")) as backup:
        assert backup.execute("SELECT id, folder FROM drops").fetchall() == [(drop, "/images")]
        assert backup.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)


def test_a_journal_of_before_standings_has_them_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that a sample may be in it, and what was kept is what would have been worked out from nothing."""
    state = tmp_path / "old"
    state.mkdir()
    with monkeypatch.context() as before:
        before.setattr(module, "HEAD", "0007")
        before.setattr("daemon.standings.refresh", lambda _connection: None)
        before.setattr(command, "upgrade", partial(upgrade_to, command.upgrade, "0007"))
        open_journal(state, migrate=True).dispose()
    with closing(sqlite3.connect(state / "journal.db")) as raw:
        raw.executescript(OLD_ROWS)
    engine = open_journal(state, migrate=True)
    table = schema.standings
    with engine.connect() as connection:
        found = {row.sample_id: (row.class_name, row.role, row.state) for row in connection.execute(select(table))}
    engine.dispose()
    assert found == {
        1: ("cat", "train", "usable"), 2: (None, "train", "conflict"), 3: ("dog", "judge", "usable"),
        4: ("cat", "train", "held"), 5: ("cat", "train", "flagged"), 6: (None, None, "unlabelled"),
        7: (None, "train", "gone"), 8: ("cat", "train", "forgotten"), 9: ("dog", "train", "usable"),
    }  # fmt: skip


def upgrade_to(upgrade: Any, revision: str, config: Any, _head: str) -> None:
    upgrade(config, revision)


def test_the_triggers_are_those_of_the_newest_journal(journal: Engine) -> None:
    """A migration that alters a table by copying it takes its triggers away, without a word."""
    with journal.connect() as connection:
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        found = set(connection.exec_driver_sql(query).scalars())
    stale, notices = (importlib.import_module(name).TRIGGERS for name in (STANDINGS, NOTICES))
    assert found == {f"stale_{name}" for name in stale} | {f"notice_of_{name}" for name in notices}


def test_a_damaged_journal_is_named(state: Path) -> None:
    (state / "journal.db").write_bytes(b"this is no database, " * 100)
    with pytest.raises(RelearnError, match=r"journal\.db: cannot be read"):
        open_journal(state)
