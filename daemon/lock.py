"""One daemon a workspace."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.errors import WorkspaceBusy


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Keeps a second daemon off the workspace; the lock goes with the process, however it ends."""
    with (state / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise WorkspaceBusy(
                f"{state}: another daemon (process {file.read().strip() or '?'}) runs on this workspace"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


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
