"""One daemon a workspace."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.errors import WorkspaceBusy
from daemon.lock import is_running, locked

CHECKOUT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, threading
from pathlib import Path
from daemon.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    threading.Event().wait()
"""


def test_a_question_does_not_keep_a_daemon_from_starting(tmp_path: Path) -> None:
    """`relearn status` holds the lock for a moment while it asks whether anybody has it."""
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with locked(tmp_path):
            assert is_running(tmp_path)
        timer.join()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the workspace."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_nobody_has_a_fresh_workspace(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    with locked(tmp_path):
        assert is_running(tmp_path)
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert not is_running(tmp_path)


def test_a_second_daemon_is_refused_by_the_number_of_the_first(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    assert is_running(tmp_path)
    with pytest.raises(WorkspaceBusy, match=f"process {other.pid}") as caught, locked(tmp_path):
        pass
    assert caught.value.exit_code == 1


def test_the_lock_goes_with_a_killed_process(
    tmp_path: Path, other: subprocess.Popen[str], eventually: Callable[..., None]
) -> None:
    other.kill()
    other.wait()
    eventually(lambda: not is_running(tmp_path))
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_looking_does_not_keep_others_off(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    assert [is_running(tmp_path) for _ in range(3)] == [False] * 3
    with locked(tmp_path):
        pass
