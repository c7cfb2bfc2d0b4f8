"""A child process that does not outlive the process that started it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1

_LAUNCHER = (
    "import ctypes, os, sys\n"
    f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent ends; exits at once if that has happened already.

    An orphan belongs to process 1, which in a container may be the parent itself: whether anyone still holds the
    other end of stdout tells the two apart.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    listened = select.poll()
    listened.register(sys.stdout, select.POLLERR)
    if os.getppid() == 1 and listened.poll(0):
        sys.exit(1)


def tether(command: Sequence[str]) -> list[str]:
    """The command, started so that it dies with the calling process (argv[0] must be a path).

    The kernel ties the child to the *thread* that starts it: start it from one that lives as long as the
    child should. A launcher of one line asks for it and then becomes the command; `preexec_fn`, which would
    do the same, is not safe in a process with threads.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
