"""The content-addressed store: a copy of every sample, named by the SHA-256 of its bytes.

A copy is a reflink where the file system has it, otherwise real bytes; never a hard link, through which an edit in
place would change it. What is the user's is opened for reading alone.
With store.keep = "reference" it holds links to the user's files in place of copies; who reads them checks the hash.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FICLONE = 0x40049409  # ioctl_ficlone(2)
FEW_BYTES = 16 << 20  # so many are kept in memory between hashing and decoding
_libc = ctypes.CDLL(None, use_errno=True)


def place(store: Path, sha256: str) -> Path:
    """Where the sample of this hash lies, or would lie."""
    return store / sha256[:2] / sha256


class SourceUnreadable(Exception):
    """The file that is to be copied gives an error when read; nothing is wrong with the store."""


class StoreUnwritable(Exception):
    """The store takes nothing (a full disk, lost rights); nothing is wrong with the file that is to be copied."""


def copy_in(original: BinaryIO, temporary: Path) -> tuple[str, int, bytes | None]:
    """Copies an open file; returns SHA-256 (hex) and size of what was copied, and its bytes where they are few.

    The copy is read back: what is hashed, and what is decoded later, is what the store holds. It is not durable until
    `settle` has synced it and given it its name. Raises SourceUnreadable, StoreUnwritable.
    """
    with _writing(), temporary.open("w+b") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            while chunk := _read(original):
                copy.write(chunk)
            copy.flush()
        copy.seek(0)
        if os.fstat(copy.fileno()).st_size <= FEW_BYTES:
            content = copy.read()
            return hashlib.sha256(content).hexdigest(), len(content), content
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
        return digest, copy.tell(), None


def look_at(original: BinaryIO) -> tuple[str, int, bytes | None]:
    """As `copy_in`, and copies nothing: for a store that keeps references. Raises SourceUnreadable."""
    digest, size, kept = hashlib.sha256(), 0, b""
    while chunk := _read(original):
        digest.update(chunk)
        size += len(chunk)
        kept = kept + chunk if size <= FEW_BYTES else b""
    return digest.hexdigest(), size, kept if size <= FEW_BYTES else None


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
    """Gives each of a batch of copies its name, and makes all durable with one sync. Raises StoreUnwritable.

    A name that was not there may come before its bytes are durable: nobody knows of it until this returns. Of one that
    was there a good copy stays as it is.
    """
    if not copies:
        return
    with _writing():
        for temporary, sha256 in copies.items():
            final = place(store, sha256)
            if not os.path.lexists(final):
                _move(temporary, final)
            elif holds(final, sha256):
                temporary.unlink()
            else:
                _sync(temporary)
                _move(temporary, final)
        sync_file_system(store)


def refer(store: Path, originals: dict[Path, str]) -> None:
    """In place of copies: a link to each original. Raises StoreUnwritable."""
    with _writing():
        for original, sha256 in originals.items():
            final = place(store, sha256)
            if os.path.lexists(final) and holds(final, sha256):
                continue
            link = store / "incoming" / f"{sha256}.link"
            link.unlink(missing_ok=True)
            link.symlink_to(original)
            _move(link, final)
        sync_file_system(store)


def holds(file: Path, sha256: str) -> bool:
    """Whether a file is there, or what it links to, and still has these bytes."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:
        return False


def make_room(store: Path, part: int = 0) -> Path:
    """A folder for copies on their way in, emptied of what a reader that was killed left. Raises StoreUnwritable."""
    incoming = store / "incoming" / str(part)
    with _writing():
        incoming.mkdir(parents=True, exist_ok=True)
        for left in incoming.iterdir():
            left.unlink()
    return incoming


def clear_incoming(store: Path) -> None:
    """Removes what killed readers left on its way in. Raises StoreUnwritable."""
    with _writing():
        shutil.rmtree(store / "incoming", ignore_errors=True)


def _move(temporary: Path, final: Path) -> None:
    try:
        temporary.rename(final)
    except FileNotFoundError:
        final.parent.mkdir(exist_ok=True)
        temporary.replace(final)


def _sync(file: Path) -> None:
    if not file.is_symlink():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def sync_file_system(folder: Path) -> None:
    """Everything written to this file system is durable when it returns (syncfs(2)). Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
