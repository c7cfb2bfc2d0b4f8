"""The child that reads new files: copies, hashes and decodes each, and says what it is or why it cannot be used.

    python -m daemon.decode, told a JOB.json

A file that crashes a decoder crashes this child, never the daemon; `at` tells which file it was. JOB.json: {"token",
"store", "keep", "part", "at", "pictures", "folder", "files": [path, …], "max_pixels", "batch"}. It prints, a batch at
a time, {"token", "stage": "intake", "event": "read", "files": [{"path", "size", "mtime_ns", "sha256", "bytes", "width",
"height", "mode", "frames"} | {"path", …, "reason"} | {"path", "again": true}, …]}; a batch is durable in the store
before it is said. What near-duplicates are found by (daemon/descriptor.py) is appended to the file `pictures`.
"""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from daemon import plain_jpeg, store
from daemon.children import die_with_parent, wait_for_job
from daemon.descriptor import DRAFT, describe
from daemon.originals import Originals, Unusable
from daemon.walk import UNREADABLE, stat_of
from policies.facts import FORMATS

USUAL = ("RGB", "L", "P", "RGBA", "1", "LA", "CMYK")  # modes of which it is known that training can convert them
SECONDS = 60  # that decoding one file may take
MEMORY_BYTES = 512 << 20  # that this process may take, beside what the largest image needs:
SMALLEST = 128  # files in a batch: what is done for each of them outweighs its sync
BYTES_PER_PIXEL = 16  # a decoded image, and its conversion


@contextmanager
def marked(file: Path) -> Iterator[mmap.mmap]:
    """What is written there outlives this process, however it ends."""
    file.write_bytes(b"%9d" % 0)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:
        yield memory


@dataclass(slots=True)
class Batch:
    """What is to be made durable together."""

    told: list[dict[str, Any]] = field(default_factory=list)
    large: dict[Path, str] = field(default_factory=dict)  # copies that have no name yet
    referred: dict[Path, str] = field(default_factory=dict)  # originals that stand in place of copies
    described: list[bytes] = field(default_factory=list)


class Reading:
    """One job: where its files lie, and where what is made of them goes."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.folder = job["folder"]
        self.originals = Originals(job["folder"])
        self.store = Path(job["store"])
        self.refer = job["keep"] == "reference"
        self.part = job["part"]
        store.make_room(self.store)
        self.max_pixels = job["max_pixels"]
        self.pictures = Path(job["pictures"])
        self.batch = Batch()
        self.incoming = itertools.count(self.part << 32)  # names of no other child's

    def read(self, path: str) -> dict[str, Any]:
        found: os.stat_result | None = None
        try:
            original, found = self.originals.open(path)
            try:
                content = store.read_few(original, found.st_size)
                told = self._take_large(original) if content is None else self._take(content)
                after = os.fstat(original)
            finally:
                os.close(original)
        except (FileNotFoundError, NotADirectoryError):
            return {"path": path, "gone": True}
        except Unusable as error:
            return _rejected(path, error.found or found, str(error))
        except OSError as error:
            return _rejected(path, None, f"cannot be read: {error.strerror}")
        except (store.SourceUnreadable, store.NoRoom) as error:
            return _rejected(path, None, str(error))
        if (found.st_size, found.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return {"path": path, "again": True}  # it is still being written
        if self.refer:
            self.batch.referred[Path(self.folder, path)] = told["sha256"]
        told["path"], (told["size"], told["mtime_ns"]) = path, stat_of(found)
        return told

    def _take(self, content: bytes) -> dict[str, Any]:
        """Of most files: all of it is in memory, and nothing of what cannot be used comes into the store."""
        sha256 = hashlib.sha256(content).hexdigest()
        looks, picture = self._decode(content)
        if not self.refer:
            store.keep(self.store, content, sha256)
        self.batch.described.append(bytes.fromhex(sha256) + picture)
        looks["sha256"], looks["bytes"] = sha256, len(content)
        return looks

    def _take_large(self, original: int) -> dict[str, Any]:
        size, free = os.fstat(original).st_size, shutil.disk_usage(self.store).free
        if not self.refer and size > free:
            raise store.NoRoom(f"takes {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free where the store lies")
        temporary = store.incoming(self.store, next(self.incoming))
        try:
            sha256, size = store.copy_large(original, temporary)
            with store.opened(temporary) as copy:
                looks, picture = self._decode(copy)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if self.refer:
            temporary.unlink()
        else:
            self.batch.large[temporary] = sha256
        self.batch.described.append(bytes.fromhex(sha256) + picture)
        return {"sha256": sha256, "bytes": size, **looks}

    def end_batch(self) -> Batch:
        """What was read since the last time."""
        self.originals.let_go()
        ended, self.batch = self.batch, Batch()
        return ended

    def settle(self, batch: Batch) -> list[dict[str, Any]]:
        """What is told of a batch: it is durable, then. Raises StoreUnwritable."""
        store.refer(self.store, batch.referred)
        store.settle(self.store, batch.large)
        try:
            with self.pictures.open("ab") as stream:
                stream.write(b"".join(batch.described))
        except OSError:  # what cannot be left is made again from the store
            self.pictures.unlink(missing_ok=True)  # a record that is torn would spoil those after it
        return batch.told

    def _decode(self, source: bytes | BinaryIO) -> tuple[dict[str, Any], bytes]:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # ends this process: no decoder listens to anything else
        try:
            return decode(source, self.max_pixels)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def read_files(job: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Reads the job's files, a batch at a time, while the one before is made durable.

    The last batches are small, since for them everybody waits. Raises StoreUnwritable (the disk is full).
    """
    reading = Reading(job)
    settling: Future[list[dict[str, Any]]] | None = None
    numbered, left = enumerate(job["files"]), len(job["files"])
    with marked(Path(job["at"])) as at, ThreadPoolExecutor(1) as beside:
        while some := list(islice(numbered, min(job["batch"], max(SMALLEST, left // 2)))):
            left -= len(some)
            try:
                for number, path in some:
                    at[:] = b"%9d" % number
                    reading.batch.told.append(reading.read(path))
            finally:  # the store may take no more: what it took before counts
                if settling:
                    yield settling.result()
            settling = beside.submit(reading.settle, reading.end_batch())
        if settling:
            yield settling.result()


def decode(source: bytes | BinaryIO, max_pixels: float) -> tuple[dict[str, Any], bytes]:
    """What an image is ({"width", "height", "mode", "frames"}), and its description, upright as its EXIF says.

    Raises Unusable, and of a copy in the store that cannot be read back StoreUnwritable.
    """
    try:
        if isinstance(source, bytes) and (found := plain_jpeg.decode(source, max_pixels, DRAFT)):
            (mode, width, height), gray = found
            return {"width": width, "height": height, "mode": mode, "frames": 1}, describe(gray, (width, height))
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Unusable(
                    f"has {width * height / 1e6:.0f} megapixels, more than watch.max_megapixels = {max_pixels / 1e6:g}"
                )
            mode, drafted = image.mode, _draft(image)
            image.load()
            if image.mode not in USUAL:
                image.crop((0, 0, 1, 1)).convert("RGB")  # what training could not convert is refused here
            looks = {"width": width, "height": height, "mode": mode if drafted else image.mode}
            looks["frames"] = _count_frames(image)
            return looks, describe(_upright(image), (width, height))
    except UnidentifiedImageError:
        known = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
        raise Unusable(f"is no image that can be recognised, whatever its name says: {known} are read") from None
    except MemoryError:
        raise Unusable("takes more memory to decode than a reader may have") from None
    except (Unusable, store.StoreUnwritable):
        raise
    except Exception as error:  # whatever odd bytes make Pillow raise, also of a place that no file can have
        raise Unusable(f"cannot be decoded: {error}") from None


def _draft(image: Image.Image) -> bool:
    """Of most JPEGs all is read and decoded, and only its gray worked out, no larger than need be."""
    layers = getattr(image, "layer", [])
    if not layers or not plain_jpeg.is_whole([(across, down) for _, across, down, _ in layers]):
        return False
    return image.draft("L", (DRAFT, DRAFT)) is not None


def _count_frames(image: Image.Image) -> int:
    """1, or 2 for any that has more: to count them all would be to read them all."""
    return 2 if getattr(image, "is_animated", False) else 1


def _upright(image: Image.Image) -> Image.Image:
    """As EXIF says; of a broken one nothing is believed."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever odd bytes make Pillow raise
        return image


def needed(max_pixels: float) -> int:
    """Bytes of memory that decoding an image of at most so many pixels may take."""
    return MEMORY_BYTES + BYTES_PER_PIXEL * int(max_pixels)


def _rejected(path: str, found: os.stat_result | None, reason: str) -> dict[str, Any]:
    """As it was `found` it is not read again. None: what kept it from being read may pass, the next scan tries it."""
    size, mtime = stat_of(found) if found else UNREADABLE
    return {"path": path, "size": size, "mtime_ns": mtime, "reason": reason}


def main() -> int:
    die_with_parent()
    try:
        return _read_and_say()
    except store.StoreUnwritable as error:
        print(error, file=sys.stderr)
        return store.UNWRITABLE


def _read_and_say() -> int:
    gc.freeze()  # what was imported is no garbage
    if (job := wait_for_job()) is None:
        return 0
    Image.MAX_IMAGE_PIXELS = None  # the job's own limit is checked before anything is decoded
    warnings.simplefilter("ignore")  # of odd files there are many
    limit = needed(job["max_pixels"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    say = partial(_say, job["token"])
    told: Future[None] | None = None
    with ThreadPoolExecutor(1) as beside:  # a batch is more than a pipe holds: nobody waits for who listens
        for files in read_files(job):
            if told:
                told.result()
            told = beside.submit(say, files)
        if told:
            told.result()
    return 0


def _say(token: str, files: list[dict[str, Any]]) -> None:
    print(json.dumps({"token": token, "stage": "intake", "event": "read", "files": files}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
