"""A workspace with the real daemon and the real Triton in it, as the demonstration starts them, and its questions."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.demo.clients import Client, Record
from daemon.demo.digits import Digit, cut, drop, known
from daemon.demo.processes import TARGET, Workspace
from tests.command import relearn_here

CHECKOUT = Path(__file__).resolve().parents[2]
EPOCHS = 12
PER_CLASS = 90  # images of each class in the first drop
SECONDS = 180.0  # for one thing to come about, on a slow machine


class House(Workspace):
    """A workspace, with what tests ask of it from outside."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, EPOCHS)
        # With so few images no verdict could tell five points: what is tried here is the way, not the statistics.
        config = folder / "config.toml"
        config.write_text(config.read_text().replace("margin = 0.05", "margin = 0.25"))
        self.waves = cut()
        self.clients: list[Client] = []

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, run to its end. Whatever it is, no traceback is shown."""
        command = [str(CHECKOUT / "relearn"), *arguments, "--workspace", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same, of which the process is not what is tried."""
        return relearn_here(*arguments, "--workspace", str(self.folder))

    def view(self, *arguments: str) -> Any:
        done = self.here(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def drop(self, digits: list[Digit]) -> None:
        drop(digits, self.images)

    def some(self, classes: str, first: int = 0, count: int = PER_CLASS) -> list[Digit]:
        """So many images of each of these digits, from the `first` on."""
        pool = (*self.waves.first, *self.waves.second)
        return [digit for name in classes for digit in known(pool, [name])[first : first + count]]

    def ask_all_the_time(self, classes: str) -> None:
        """A client that asks twenty times a second until `answers` is called."""
        held_back = known(self.waves.held_back, list(classes))
        self.clients.append(Client(self.url, TARGET, self.config.repository, held_back, 20.0))
        self.clients[-1].start()

    def answers(self) -> Record:
        return self.clients[-1].stop()

    def until(self, holds: Callable[[], Any], what: str, seconds: float = SECONDS, pause: float = 0.05) -> Any:
        """Waits until it is so. What the daemon's log ends with is shown where it does not come about."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            if self.daemon and self.daemon.poll() is not None:
                pytest.fail(f"the daemon has ended, waiting until {what}: {self.log('run')}")
            if time.monotonic() > deadline:
                pytest.fail(f"waited {seconds:.0f} s until {what}: {self.log('run')}")
            threading.Event().wait(pause)
        return found

    def at_rest(self) -> bool:
        """Nothing runs, nothing is under way, and the last switch has been tidied up after."""
        quiet = self.sql(
            "select (select count(*) from cycles where state = 'running')"
            " + (select count(*) from promotions where state in ('switching', 'undoing'))"
            " + (select count(*) from promotions where state = 'serving' and step <> 'retire')"
        )
        return quiet == [(0,)]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """What the journal says, asked with SQLite's own module."""
        with closing(sqlite3.connect(self.config.state / "journal.db", timeout=30)) as journal:
            return journal.execute(query).fetchall()

    def until_reached(self, query: str, what: str) -> None:
        """Waits until a query that counts finds something.

        One connection asks again and again. It is closed by then: whoever is killed next leaves a journal that nobody
        has open, and which the next to open it has to recover.
        """
        file = self.config.state / "journal.db"
        made = "select count(*) from sqlite_master where name = 'promotions'"
        self.until(lambda: file.exists() and self.sql(made) == [(1,)], f"there is a journal, to see that {what}")
        with closing(sqlite3.connect(file, timeout=30)) as journal:
            self.until(lambda: journal.execute(query).fetchall()[0][0], what, pause=0.005)

    def stop(self) -> None:
        for client in self.clients:
            client.stop()
        super().stop()
