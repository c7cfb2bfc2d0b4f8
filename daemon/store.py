"""The content-addressed store: a copy of every sample, named by the SHA-256 of its bytes.

A copy is a reflink where the file system has it, otherwise real bytes; never a hard link, through which an edit in
place would change it. What is the user's is opened for reading alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_libc = ctypes.CDLL(None, use_errno=True)


def place(store: Path, sha256: str) -> Path:
    """Where the sample of this hash lies, or would lie."""
    return store / sha256[:2] / sha256


class SourceUnreadable(Exception):
    """The file that is to be copied gives an error when read; nothing is wrong with the store."""


class StoreUnwritable(Exception):
    """The store takes nothing (a full disk, lost rights); nothing is wrong with the file that is to be copied."""


def copy_in(original: BinaryIO, temporary: Path) -> tuple[str, int]:
    """Copies an open file and returns the SHA-256 (hex) and the size of what was copied: the copy is what was hashed.

    Not durable until `settle` has synced it and given it its name. Raises SourceUnreadable, StoreUnwritable.
    """
    with _writing(), temporary.open("w+b") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            while chunk := _read(original):
                copy.write(chunk)
            copy.flush()
        copy.seek(0)
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
        return digest, copy.tell()


def _read(original: BinaryIO) -> bytes:
    try:
        return original.read(1 << 20)
    except OSError as error:
        raise SourceUnreadable(f"cannot be read: {error.strerror}") from error


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnwritable(str(error)) from error


def settle(store: Path, copies: dict[Path, str]) -> None:
    """Makes a batch of copies durable with one sync, then gives each its name. Raises StoreUnwritable."""
    if not copies:
        return
    with _writing():
        _sync_file_system(store)
        for temporary, sha256 in copies.items():
            final = place(store, sha256)
            final.parent.mkdir(exist_ok=True)
            temporary.replace(final)  # also of a copy that is there: it may be damaged
        _sync_file_system(store)


def make_room(store: Path) -> Path:
    """The folder for copies on their way in, emptied of what a reader that was killed left. Raises StoreUnwritable."""
    incoming = store / "incoming"
    with _writing():
        incoming.mkdir(parents=True, exist_ok=True)
        for left in incoming.iterdir():
            left.unlink()
    return incoming


def _sync_file_system(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
