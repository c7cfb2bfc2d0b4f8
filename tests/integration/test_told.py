"""Who is told of what a real daemon does: a webhook, the command line, and systemd, by a socket in its place."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.endpoints import Webhook

CHECKOUT = Path(__file__).resolve().parents[2]
RELEARN = str(CHECKOUT / "relearn")
SECONDS = 60.0
SECRETS = ("geheim99", "tok3n")
Eventually = Callable[..., None]


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with Webhook() as hook:
        yield hook


def relearn(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [RELEARN, *arguments, "--workspace", str(workspace)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def notify(workspace: Path, *entries: str) -> None:
    with (workspace / "config.toml").open("a") as file:
        file.write("".join(f"\n[[notify]]\n{entry}\n" for entry in entries))


class Manager:
    """Starts the daemon as systemd does, and hears what it says."""

    def __init__(self, workspace: Path, log: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(log.with_name("notify")))
        self.socket.settimeout(SECONDS)
        self.said: list[str] = []
        self.log = log
        told = {"NOTIFY_SOCKET": str(log.with_name("notify")), "WATCHDOG_USEC": "2000000"}
        settings = ["--set", "watch.settle_seconds=0.2", "--set", "triton.url=127.0.0.1:9"]
        with log.open("ab") as file:
            self.daemon = subprocess.Popen(
                [RELEARN, "run", "--workspace", str(workspace), *settings],
                env=os.environ | told,
                stdout=file,
                stderr=file,
            )

    def hear(self, word: str) -> None:
        """Waits until it is said."""
        while not any(word in line for line in self.said):
            assert self.daemon.poll() is None, self.log.read_text()
            self.said += self.socket.recv(4096).decode().splitlines()

    def end(self) -> int:
        self.daemon.send_signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        return self.daemon.wait(SECONDS)

    def close(self) -> None:
        self.socket.close()
        if self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()


@pytest.fixture
def manage(tmp_path: Path) -> Iterator[Callable[[Path], Manager]]:
    started: list[Manager] = []

    def start(workspace: Path) -> Manager:
        (folder := tmp_path / f"manager{len(started)}").mkdir()
        started.append(Manager(workspace, folder / "log"))
        return started[-1]

    yield start
    for manager in started:
        manager.close()


def test_a_decision_is_told_to_the_webhook_and_no_secret_is_written_down(
    workspace: Path, hook: Webhook, manage: Callable[[Path], Manager], eventually: Eventually
) -> None:
    away = "json://bob:geheim99@127.0.0.1:9/tok3n"
    notify(workspace, f'url = "{hook.url}"', f'url = "{away}"\nname = "away"')
    manager = manage(workspace)
    eventually(lambda: hook.about, seconds=SECONDS)
    eventually(lambda: "notify away: not sent" in manager.log.read_text(), seconds=SECONDS)
    assert manager.end() == 0
    (taken,) = hook.taken
    assert (taken["about"], taken["kind"], taken["target"]) == ("d1", "decision", "edge")
    view = relearn(workspace, "notify", "--json")
    entries = {entry["name"]: entry for entry in json.loads(view.stdout)}
    assert (entries["json"]["sent"], entries["json"]["waiting"], entries["json"]["error"]) == (1, 0, None)
    assert (entries["away"]["sent"], entries["away"]["waiting"]) == (0, 1)
    with closing(sqlite3.connect(workspace / "state" / "journal.db")) as journal:
        assert journal.execute("SELECT reason FROM decisions").fetchall() == [(taken["reason"],)]
        written = "\n".join(journal.iterdump())
    for secret in SECRETS:
        assert not [text for text in (written, manager.log.read_text(), view.stdout) if secret in text]


def test_systemd_is_told_from_the_first_to_the_last(workspace: Path, manage: Callable[[Path], Manager]) -> None:
    manager = manage(workspace)
    manager.hear("READY=1")
    assert "STATUS=watching 1 folder" in manager.said
    manager.said.clear()
    manager.hear("WATCHDOG=1")  # though nothing happens
    assert manager.end() == 0
    assert manager.said[-2:] == ["STOPPING=1", "STATUS=stopping"]


def test_a_loop_that_hangs_says_nothing_more(workspace: Path, manage: Callable[[Path], Manager]) -> None:
    """It waits for a lock on the journal here, while every other thread goes on."""
    manager = manage(workspace)
    manager.hear("READY=1")
    with closing(sqlite3.connect(workspace / "state" / "journal.db", timeout=30)) as journal:
        journal.execute("BEGIN IMMEDIATE")
        with (workspace / "constraints" / "edge.toml").open("a") as file:
            file.write("# edited\n")
        manager.socket.settimeout(4)  # twice what the watchdog waits
        deadline = time.monotonic() + 25
        with pytest.raises(TimeoutError):
            while time.monotonic() < deadline:
                manager.socket.recv(4096)
    manager.socket.settimeout(SECONDS)
    manager.hear("WATCHDOG=1")


def test_a_test_message_goes_without_a_daemon_and_says_what_does_not(workspace: Path, hook: Webhook) -> None:
    notify(workspace, f'url = "{hook.url}"\nkinds = ["hold"]', 'url = "env:NOT_SET_HERE"')
    done = relearn(workspace, "notify", "json", "--test", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [{"name": "json", "sent": True, "error": None}])
    assert hook.about == ["test"]
    both = relearn(workspace, "notify", "--test")
    assert both.returncode == 1
    assert "json: sent" in both.stdout and "NOT_SET_HERE: the environment variable" in both.stdout
