"""The child that reads new files: copies, hashes and decodes each, and says what it is or why it cannot be used.

    python -m daemon.decode JOB.json

A file that crashes a decoder crashes this child, never the daemon. JOB.json: {"token", "store", "files": [[folder,
path], …], "max_pixels", "batch"}. It prints, a batch at a time, {"token", "stage": "intake", "event": "read", "files":
[{"path", "size", "mtime_ns", "sha256", "bytes", "width", "height", "mode"} | {"path", …, "reason"} | {"path", "again":
true}, …]}; a batch is durable in the store before it is said.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from daemon import store
from daemon.children import die_with_parent


def read_files(job: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Reads the job's files, a batch at a time. Raises StoreUnwritable (the disk is full)."""
    keep = Path(job["store"])
    incoming = store.make_room(keep)
    files = iter(job["files"])
    while batch := list(islice(files, job["batch"])):
        copies: dict[Path, str] = {}
        told = [_read(Path(folder), path, incoming, copies, job["max_pixels"]) for folder, path in batch]
        store.settle(keep, copies)
        yield told


def _read(folder: Path, path: str, incoming: Path, copies: dict[Path, str], max_pixels: float) -> dict[str, Any]:
    file, temporary = folder / path, incoming / str(len(copies))
    try:
        before = file.stat()
        _refuse(file, folder, before)
        with file.open("rb") as original:
            sha256, size = store.copy_in(original, temporary)
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            temporary.unlink()
            return {"path": path, "again": True}  # it is still being written
        width, height, mode = _decode(temporary, max_pixels)
    except (FileNotFoundError, NotADirectoryError):
        return {"path": path, "gone": True}
    except OSError as error:
        return _rejected(path, None, f"cannot be read: {error.strerror}")
    except store.SourceUnreadable as error:
        return _rejected(path, None, str(error))
    except _Unusable as error:
        temporary.unlink(missing_ok=True)
        return _rejected(path, before, str(error))
    copies[temporary] = sha256
    return {
        "path": path,
        "size": before.st_size,
        "mtime_ns": before.st_mtime_ns,
        "sha256": sha256,
        "bytes": size,
        "width": width,
        "height": height,
        "mode": mode,
    }


class _Unusable(Exception):
    pass


@cache
def _resolve(folder: Path) -> Path:
    """The watched folder, once for all of its files: each look costs as much as a small file's reading."""
    return folder.resolve()


def _refuse(file: Path, folder: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise _Unusable("is a folder: links to folders are not followed; watch.folders may name more than one")
    if not stat.S_ISREG(found.st_mode):
        raise _Unusable("is no regular file (a device, pipe or socket is never opened)")
    if found.st_size == 0:
        raise _Unusable("is empty")
    if not file.resolve().is_relative_to(_resolve(folder)):  # by a folder on the way, too
        raise _Unusable(f"is a link out of the watched folder, to {file.resolve()}")


def _decode(file: Path, max_pixels: float) -> tuple[int, int, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise _Unusable(
                        f"has {width * height / 1e6:.0f} megapixels, more than watch.max_megapixels = "
                        f"{max_pixels / 1e6:g}"
                    )
                image.load()
                image.crop((0, 0, 1, 1)).convert("RGB")  # what training could not convert is refused here
                return width, height, image.mode
    except UnidentifiedImageError:
        raise _Unusable("is no image that can be recognised, whatever its name says") from None
    except (_Unusable, MemoryError):  # where memory is short no file is at fault
        raise
    except Exception as error:  # whatever odd bytes make Pillow raise
        if isinstance(error, OSError) and error.errno is not None:  # the copy cannot be read back
            raise store.StoreUnwritable(str(error)) from error
        raise _Unusable(f"cannot be decoded: {error}") from None


def _rejected(path: str, found: os.stat_result | None, reason: str) -> dict[str, Any]:
    """As it was `found` it is not read again. None: what kept it from being read may pass, the next scan tries it."""
    size, mtime = (found.st_size, found.st_mtime_ns) if found else (-1, -1)
    return {"path": path, "size": size, "mtime_ns": mtime, "reason": reason}


def main() -> int:
    die_with_parent()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Image.MAX_IMAGE_PIXELS = None  # the job's own limit is checked before anything is decoded
    for files in read_files(job):
        line = {"token": job["token"], "stage": "intake", "event": "read", "files": files}
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
