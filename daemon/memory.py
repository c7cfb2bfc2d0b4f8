"""Memory that heavy work leaves behind: nobody uses it any more, and the system does not have it back by itself."""

from __future__ import annotations

import ctypes
import gc

_libc = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # mallopt(3)
ARENAS = 2


def share_heaps() -> None:
    """Threads share their heaps from now on: each of the daemon's many would keep one, nearly empty, for itself."""
    if hasattr(_libc, "mallopt"):  # of the GNU C library alone
        _libc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Frees what only a cycle of references keeps, then hands free pages of the heap to the system (malloc_trim(3))."""
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
