"""A child that does not outlive who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[3]
# Starts the package's child on a job file that never comes, says its id, and waits.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-P", "-m", "pipeline", sys.argv[1]], stdout=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""


def test_it_is_killed_with_its_parent(tmp_path: Path, eventually: Callable[..., None]) -> None:
    job = tmp_path / "job.json"
    os.mkfifo(job)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(job)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    opened: list[int] = []

    def reading() -> bool:
        """Whether the child has come to read its job: by then it has asked to die with its parent."""
        try:
            opened.append(os.open(job, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        eventually(reading, seconds=60)
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait(60)
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=60)
    finally:
        parent.kill()
        parent.wait()
        for descriptor in opened:
            os.close(descriptor)
