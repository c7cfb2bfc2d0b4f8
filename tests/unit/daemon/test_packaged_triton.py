"""What ends the packaged Triton's watch: its end, its silence, or being told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import packaged_triton
from daemon.packaged_triton import await_end
from deploy.server import Server, free_ports


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "repository").mkdir()
    with Server(tmp_path / "repository", tmp_path / "cache", ports=free_ports(3)) as server:
        yield server


def test_a_server_that_hangs_is_not_waited_for_for_ever(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_triton, "HANG_SECONDS", 1.0)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        assert await_end(server, threading.Event()) == "has answered nobody for 1 s"
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    assert await_end(server, stop) == ""  # it answers again, for longer than it may be silent
    os.kill(server.process.pid, signal.SIGKILL)
    assert await_end(server, threading.Event()) == "ended with status -9"
