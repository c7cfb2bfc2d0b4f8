"""What heavy work leaves behind is freed, also what refers to itself."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from daemon import memory

# Every second piece is freed: the heap cannot shrink from its end, only give back what lies between.
LEFT = """
import ctypes, pathlib
from daemon import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

pieces = [libc.malloc(100_000) for _ in range(400)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
for piece in pieces[::2]:
    libc.free(piece)
before = resident()
memory.give_back()
print(before - resident())
"""


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_refers_to_itself_is_freed() -> None:
    gc.disable()
    try:
        knot = weakref.ref(Knot())
        assert knot() is not None
        memory.give_back()
        assert knot() is None
    finally:
        gc.enable()


def test_the_system_has_free_memory_back() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000_000  # of the 20 MB that were freed
