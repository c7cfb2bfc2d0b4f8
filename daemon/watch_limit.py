"""Whether the kernel takes one more inotify watch: watchdog says nothing of a new folder that gets none."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_IN_ATTRIB = 0x00000004  # inotify(7)


def find_watch_limit(folder: Path) -> OSError | None:
    """The error of one more watch (on this folder, given back at once) where the limit is reached; None: it is not."""
    descriptor = _libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return None  # no instance more: those that there are go on
    try:
        if _libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_ATTRIB) >= 0:
            return None
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number)) if number == errno.ENOSPC else None
    finally:
        os.close(descriptor)
