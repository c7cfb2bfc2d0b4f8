"""A workspace's configuration and journal, and drops read without a loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from daemon.config import Config, load
from daemon.decode import read_files
from daemon.intake import Drop, compare
from daemon.journal import open_journal

ReadIn = Callable[..., Drop | None]


@pytest.fixture
def config(workspace: Path) -> Config:
    (workspace / "state").mkdir()
    return load(workspace, ["watch.settle_seconds=0.01"])


@pytest.fixture
def journal(config: Config) -> Engine:
    return open_journal(config.state, migrate=True)


@pytest.fixture
def read_in(config: Config, journal: Engine) -> ReadIn:
    """Reads what changed in the watched folder (or in these paths of it) in this process; None: nothing did."""

    def read(*paths: Path, folder: Path | None = None) -> Drop | None:
        folder = folder or config.folders[0]
        with journal.connect() as connection:
            difference = compare(connection, folder, paths or None, settle_seconds=-60)
        if not (difference.read or difference.gone or difference.unnamable):
            return None
        drop = Drop(config, journal, folder, difference)
        for files in read_files(drop.job("token")):
            drop.take(files)
        drop.finish()
        return drop

    return read
