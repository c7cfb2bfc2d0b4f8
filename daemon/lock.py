"""One daemon a workspace."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from daemon.errors import WorkspaceBusy

ASKING_SECONDS = 0.5


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Keeps a second daemon off the workspace; the lock goes with the process, however it ends."""
    with (state / "lock").open("a+") as file:
        if not _lock(file):
            file.seek(0)
            raise WorkspaceBusy(
                f"{state}: another daemon or benchmark (process {file.read().strip() or '?'}) runs on this workspace"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    """Takes the lock. Another daemon has it for good; a command that asks whether one does, for a moment."""
    deadline = time.monotonic() + ASKING_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            threading.Event().wait(0.02)


def is_running(state: Path) -> bool:
    """Whether a daemon has the workspace now."""
    try:
        with (state / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
