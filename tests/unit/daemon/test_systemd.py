"""What the daemon tells systemd, heard on a real datagram socket in systemd's place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.systemd import Supervisor


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listens where $NOTIFY_SOCKET says from now on."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@relearn-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0") if name.startswith("@") else name)
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    """All messages since the last look."""
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_ready_is_said_once_and_the_status_when_it_is_new(manager: socket.socket) -> None:
    supervisor = Supervisor()
    supervisor.tell("watching\n2 folders", ready=True)
    assert heard(manager) == ["STATUS=watching 2 folders\nREADY=1"]
    supervisor.tell("watching\n2 folders", ready=True)
    assert heard(manager) == []
    supervisor.tell("cycle 1 for edge", ready=True)
    supervisor.stopping()
    assert heard(manager) == ["STATUS=cycle 1 for edge", "STOPPING=1\nSTATUS=stopping"]


def test_before_it_is_ready_it_asks_for_more_time(manager: socket.socket) -> None:
    supervisor = Supervisor()
    supervisor.tell("trouble: the disk is full", ready=False)
    assert heard(manager) == ["STATUS=trouble: the disk is full\nEXTEND_TIMEOUT_USEC=120000000"]
    supervisor.tell("trouble: the disk is full", ready=False)
    assert heard(manager) == ["EXTEND_TIMEOUT_USEC=120000000"]
    supervisor.tell("watching 1 folder", ready=True)
    assert heard(manager) == ["STATUS=watching 1 folder\nREADY=1"]


def test_signs_of_life_come_at_most_four_times_in_what_the_watchdog_waits(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    clock = [100.0]
    monkeypatch.setattr("daemon.systemd.time.monotonic", lambda: clock[0])
    supervisor = Supervisor()
    assert supervisor.seconds == 10.0
    for moment, expected in ((100.0, 1), (104.0, 0), (105.0, 1), (109.9, 0), (115.0, 1)):
        clock[0] = moment
        supervisor.alive()
        supervisor.alive()
        assert heard(manager) == ["WATCHDOG=1"] * expected, moment


def test_a_watchdog_of_another_process_is_not_answered(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    supervisor = Supervisor()
    supervisor.alive()
    assert (supervisor.seconds, heard(manager)) == (0.0, [])


def test_what_the_daemon_starts_does_not_speak_for_it(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    Supervisor()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_a_manager_that_is_gone_stops_nothing(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    supervisor = Supervisor()
    manager.close()
    supervisor.tell("watching", ready=True)
    supervisor.stopping()


def test_without_a_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    supervisor = Supervisor()
    supervisor.tell("watching", ready=True)
    supervisor.stopping()
    assert supervisor.seconds == 0.0


def test_while_it_reads_its_configuration_again_it_says_so_also_where_that_fails(manager: socket.socket) -> None:
    supervisor = Supervisor()
    with pytest.raises(OSError, match="disk"), supervisor.reloading():
        [begun] = heard(manager)
        raise OSError("the disk")
    assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=") and heard(manager) == ["READY=1"]
