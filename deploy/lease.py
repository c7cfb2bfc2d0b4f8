"""The lease of the machine for a measurement: of all that measure here, in whatever workspace, one does at a time.

It is a lock on a file that all of one user's processes find, and goes with the process that holds it, however that
ends. One lease is for the whole machine: a measurement on a GPU is fed by the processor, where another would show.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from policies.job import StageError

WAIT_SECONDS = 900.0  # the longest measurement is over by far then
LOOK_SECONDS = 0.05
FILE = "relearnd-measures.lock"


@contextmanager
def hold(waiting: Callable[[str], None], wait_seconds: float = WAIT_SECONDS) -> Iterator[float]:
    """The lease, for as long as the block runs; yields the seconds that were waited for it.

    `waiting` is called once with a sentence where another has it. Raises StageError where it still has after
    `wait_seconds`.
    """
    began = time.monotonic()
    with _open(place()) as file:
        # Who waits has the turn: one that has just measured, and would again, comes after it.
        with _open(place().with_suffix(".turn")) as turn:
            if not (_take(turn) and _take(file)):
                waiting(f"waits for the measurement of process {_holder(file)}")
            while not (_take(turn) and _take(file)):
                if time.monotonic() - began > wait_seconds:
                    raise StageError(
                        f"not measured: process {_holder(file)} has measured for {wait_seconds:g} s, or hangs; "
                        f"look what it is, and end it if it hangs ({place()})"
                    )
                time.sleep(LOOK_SECONDS)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield time.monotonic() - began


def place() -> Path:
    """Where the lock lies: in the user's runtime folder, or else in /tmp, under the user's number."""
    user = os.getuid()
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}")
    if os.access(runtime, os.W_OK | os.X_OK):
        return runtime / FILE
    return Path("/tmp") / f"{user}-{FILE}"  # whatever TMPDIR is: all must find the same


def _open(path: Path) -> IO[str]:
    """Never through a link that another user laid there."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+")
    except OSError as error:
        raise StageError(f"not measured: the lock {path} cannot be opened: {error.strerror}; remove it") from error


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "?"
