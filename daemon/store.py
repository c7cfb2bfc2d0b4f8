"""The content-addressed store: a copy of every sample, named by the SHA-256 of its bytes.

A copy is a reflink where the file system has it, otherwise real bytes; never a hard link, through which an edit in
place would change it. What is the user's is opened for reading alone.
With store.keep = "reference" it holds links to the user's files in place of copies; who reads them checks the hash.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_FICLONE = 0x40049409  # ioctl_ficlone(2)
FEW_BYTES = 16 << 20  # so many are kept in memory between hashing and decoding
UNWRITABLE = os.EX_CANTCREAT  # what a child ends with where it could not be written
_libc = ctypes.CDLL(None, use_errno=True)


def place(store: Path, sha256: str) -> Path:
    """Where the sample of this hash lies, or would lie."""
    return store / sha256[:2] / sha256


class SourceUnreadable(Exception):
    """The file that is to be copied gives an error when read; nothing is wrong with the store."""


class NoRoom(Exception):
    """A file is larger than what is free: what else has come is not to wait for it."""


class StoreUnwritable(Exception):
    """The store takes nothing (a full disk, lost rights); nothing is wrong with the file that is to be copied."""


def read_few(original: int, size: int) -> bytes | None:
    """The bytes of an open file of this size; None where they are too many to be held in memory.

    Raises SourceUnreadable. Of a file that has grown there are more, of one that was cut there are fewer.
    """
    if size > FEW_BYTES:
        return None
    content = _read(original, size + 1)
    while 0 < len(content) < size and (more := _read(original, size - len(content))):
        content += more
    return content


def keep(store: Path, content: bytes, sha256: str) -> None:
    """Writes a copy, and reads it back. It has its name at once: nobody knows of it before `settle` made it durable.

    Raises StoreUnwritable.
    """
    try:
        if not _create(f"{store}/{sha256[:2]}/{sha256}", content):
            _mend(store, sha256, content)
    except OSError as error:
        raise StoreUnwritable(str(error)) from error


def copy_large(original: int, temporary: Path) -> tuple[str, int]:
    """Copies an open file, by reflink where the file system has it; SHA-256 (hex) and size of what was copied.

    `settle` gives it its name. Raises SourceUnreadable, StoreUnwritable.
    """
    with _writing(), temporary.open("w+b") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original)
        except OSError:
            while chunk := _read(original, 1 << 20):
                copy.write(chunk)
            copy.flush()
        copy.seek(0)
        return hashlib.file_digest(copy, "sha256").hexdigest(), copy.tell()


class _Copy(io.FileIO):
    """A copy that is read back: what fails then is the store's fault. Seeking is not: where to, odd bytes may say."""

    def readinto(self, buffer: Any, /) -> int | None:
        with _writing():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _writing():
            return super().readall()


def opened(copy: Path) -> BinaryIO:
    """A copy, to be decoded. Raises StoreUnwritable, then and whenever it cannot be read."""
    with _writing():
        return io.BufferedReader(_Copy(copy))


def _create(final: str, content: bytes) -> bool:
    """Writes a file and reads it back. False: there is one of its name."""
    try:
        descriptor = os.open(final, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    except FileNotFoundError:
        Path(final).parent.mkdir(exist_ok=True)
        return _create(final, content)
    try:
        written = os.write(descriptor, content)
        while written < len(content):
            written += os.write(descriptor, content[written:])
        if os.pread(descriptor, len(content), 0) != content:
            raise OSError(errno.EIO, "what was written reads as something else", final)
    except OSError:
        Path(final).unlink()
        raise
    finally:
        os.close(descriptor)
    return True


def _mend(store: Path, sha256: str, content: bytes) -> None:
    """Of a copy that is there: a good one stays, one that is damaged, or a reference, is replaced."""
    final = place(store, sha256)
    if final.is_symlink() or not holds(final, sha256):
        aside = store / "incoming" / f"{sha256}.{os.getpid()}"  # another child may be at it, too
        aside.unlink(missing_ok=True)
        _create(str(aside), content)
        _sync(aside)
        aside.replace(final)


def _read(original: int, size: int) -> bytes:
    try:
        return os.read(original, size)
    except OSError as error:
        raise SourceUnreadable(f"cannot be read: {error.strerror}") from error


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnwritable(str(error)) from error


def settle(store: Path, large: dict[Path, str]) -> None:
    """Makes a batch of copies durable with one sync, and gives the large ones their names. Raises StoreUnwritable.

    A name that was not there may come before its bytes are durable: nobody knows of it until this returns. Of one that
    was there a good copy stays as it is.
    """
    with _writing():
        for temporary, sha256 in large.items():
            final = place(store, sha256)
            if os.path.lexists(final):
                if holds(final, sha256) and not final.is_symlink():
                    temporary.unlink()
                    continue
                _sync(temporary)
            _move(temporary, final)
        sync_file_system(store)


def refer(store: Path, originals: dict[Path, str]) -> None:
    """In place of copies: a link to each original. `settle` makes them durable. Raises StoreUnwritable."""
    with _writing():
        for original, sha256 in originals.items():
            final = place(store, sha256)
            if os.path.lexists(final) and holds(final, sha256):
                continue
            link = store / "incoming" / f"{sha256}.{os.getpid()}"
            link.unlink(missing_ok=True)
            link.symlink_to(original)
            _move(link, final)


def holds(file: Path, sha256: str) -> bool:
    """Whether a file is there, or what it links to, and still has these bytes."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:
        return False


def incoming(store: Path, number: int) -> Path:
    """Where a large copy lies before it has its name."""
    return store / "incoming" / str(number)


def make_room(store: Path) -> None:
    """The folder for copies on their way in. Raises StoreUnwritable."""
    with _writing():
        (store / "incoming").mkdir(parents=True, exist_ok=True)


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
