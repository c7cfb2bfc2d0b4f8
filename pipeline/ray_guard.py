"""Ends what Ray started, once the process that started Ray is gone: `python ray_guard.py FOLDER MARK`.

Ray's servers ask the kernel to die with who started them, but its agents live on for a minute or more, and nobody
removes its session's folder. So this process reads a pipe whose other end that process alone holds: it ends when that
process does, however it does. All that Ray started carries the mark in its environment. No import but the standard
library: it is run by its path, and starts at once.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROUNDS = 50  # a process may start another while it is looked for
PAUSE = 0.1  # seconds


def find_marked(mark: str) -> list[int]:
    """The processes in whose first environment the mark stands."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and mark.encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def main() -> None:
    folder, mark = sys.argv[1:]
    sys.stdin.buffer.read()
    for _ in range(ROUNDS):
        found = find_marked(mark)
        if not found:
            break
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(PAUSE)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
