"""Child processes: started, listened to, stopped; each dies with the daemon."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from daemon.events import ChildEnded, ChildSpoke, Event

CHECKOUT = Path(__file__).resolve().parent.parent
LAST_WORDS = 40  # lines of stderr that are kept
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Called in a child: the kernel kills it when the thread that started it is gone (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    listened = select.poll()
    listened.register(sys.stdout, select.POLLERR)
    if os.getppid() == 1 and listened.poll(0):  # in a container, process 1 may be the daemon itself
        os._exit(1)


def wait_for_job() -> dict[str, Any] | None:
    """Called in a child that listens: what is in the file that it is told. None: it was told none."""
    if not (line := sys.stdin.readline()):
        return None
    job: dict[str, Any] = json.loads(Path(json.loads(line)).read_text(encoding="utf-8"))
    return job


class Child:
    """One running child; its lines and its end arrive as events, under its token."""

    def __init__(
        self,
        token: str,
        module: str,
        arguments: Sequence[str],
        put: Callable[[Event], None],
        *,
        environment: Mapping[str, str] | None = None,
        nice: int = 0,
        listens: bool = False,
    ) -> None:
        self.token = token
        self.started = time.monotonic()
        self._put = put
        command = [sys.executable, "-P", "-m", module, *arguments]
        if nice:
            command = ["nice", "-n", str(nice), *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children are stopped with it
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **(environment or {})},
        )
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._waited: tuple[float, float | None] = (0.0, None)  # seconds, and since when it waits again
        threading.Thread(target=self._listen, name=f"child {token}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started

    @property
    def waited(self) -> float:
        """Seconds for which it said that it waits for others (progress with "waiting": the lease of the machine)."""
        before, since = self._waited
        return before if since is None else before + time.monotonic() - since

    @property
    def worked(self) -> float:
        """Seconds since it was started, less those that it waited: what a limit of its time is about."""
        return self.age - self.waited

    def tell(self, line: str) -> None:
        """Says a line to a child that listens. One that is gone hears nothing, and its end is told anyway."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def stop(self, grace_seconds: float) -> None:
        """Asks the child to end, and ends it if it has not within the grace time. Returns at once."""
        self._signal(signal.SIGTERM)
        timer = threading.Timer(grace_seconds, self._signal, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    def wait(self, seconds: float) -> bool:
        """Whether the child is gone within this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _listen(self) -> None:
        assert self._process.stdout is not None and self._process.stderr is not None
        errors = threading.Thread(target=self._gather, args=[self._process.stderr], daemon=True)
        errors.start()
        threading.Thread(target=self._reap, daemon=True).start()
        for line in self._process.stdout:
            try:
                spoken: Any = json.loads(line)
            except ValueError:
                self._words.append(line.rstrip())
                continue
            if isinstance(spoken, dict) and spoken.get("token") == self.token:
                self._waited = (self.waited, time.monotonic() if "waiting" in spoken else None)
                self._put(ChildSpoke(self.token, spoken))
        status = self._process.wait()
        errors.join(1)
        self._put(ChildEnded(self.token, status, "\n".join(self._words)))

    def _reap(self) -> None:
        """What the child started and left behind ends with it: it would keep the pipes open, and nothing is heard."""
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            os.killpg(self._process.pid, signal.SIGKILL)

    def _gather(self, stderr: IO[str]) -> None:
        for line in stderr:
            self._words.append(line.rstrip())
