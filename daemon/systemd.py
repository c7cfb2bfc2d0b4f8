"""What the daemon tells systemd: that it is ready, what it does, that it still lives, that it stops (sd_notify(3)).

The protocol is one datagram of lines to the socket that $NOTIFY_SOCKET names; without it nothing is told. Only the loop
says that it lives: one that hangs falls silent, and systemd's watchdog ends it. The next start goes on from there.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

START_SECONDS = 120.0  # more time that it asks for again and again, until it is ready


class Supervisor:
    """systemd, or whoever listens in its place."""

    def __init__(self) -> None:
        """Takes the variables out of the environment: what the daemon starts speaks for itself alone."""
        self._socket = os.environ.pop("NOTIFY_SOCKET", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        mine = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        self.seconds = int(microseconds) / 2e6 if self._socket and mine else 0.0
        """Between two signs of life: half of what the watchdog waits; 0: there is none."""
        self._lived = float("-inf")
        self._ready = False
        self._status = ""

    def tell(self, status: str, *, ready: bool) -> None:
        """Says what the daemon does, where that is new, and once that it is ready."""
        if not self._socket:
            return
        lines = [f"STATUS={' '.join(status.split())}"] if status != self._status else []
        self._status = status
        if not ready and not self._ready:  # it waits for something, a full disk say, and is not to be given up
            lines.append(f"EXTEND_TIMEOUT_USEC={START_SECONDS * 1e6:.0f}")
        elif not self._ready:
            self._ready = True
            lines.append("READY=1")
        if lines:
            self.send(*lines)
        self.alive()

    def alive(self) -> None:
        """Says that the loop goes round. It may be called as often as one likes."""
        moment = time.monotonic()
        if self.seconds and moment - self._lived >= self.seconds / 2:
            self._lived = moment
            self.send("WATCHDOG=1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """For as long as the block lasts it reads its configuration again."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.send("READY=1")

    def stopping(self) -> None:
        self.send("STOPPING=1", "STATUS=stopping")

    def send(self, *lines: str) -> None:
        """One message. A socket that is gone or full never stops the daemon."""
        if not self._socket:
            return
        address = f"\0{self._socket[1:]}" if self._socket.startswith("@") else self._socket
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.setblocking(False)
                speaker.sendto("\n".join(lines).encode(errors="replace"), address)
        except OSError:
            self._lived = float("-inf")  # what was not heard is said again with the next event
