"""The child that looks for near-duplicates: brings the index up to date with the journal, and tells the pairs found.

    python -m daemon.match INDEX, told a JOB.json

JOB.json: {"token", "journal", "store", "max_pixels", "pictures": [file, …], "all": true | false}: whether the whole
journal is gone through, or only what is newer than the index. `pictures` are what the reading children have left
(daemon/decode.py); what they lack is made again from the store. It prints {"token", "stage": "match", "event": "pairs",
"pairs": [[id, id], …]}.
Whose drop is still being matched is matched anew: a daemon that was killed may not have heard of its pairs. Of what was
forgotten the index loses its picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from daemon import likeness
from daemon.children import die_with_parent, wait_for_job
from daemon.decode import SECONDS, decode, needed
from daemon.descriptor import SIZE
from daemon.duplicates import Index
from daemon.neighbours import Ints
from daemon.originals import Unusable, open_regular
from daemon.store import SourceUnreadable, place, read_few

CHUNK = 50_000  # samples at once
LEFT = np.dtype([("sha256", "S32"), ("descriptor", "u1", SIZE)])  # of the reading children
MATCHING = """
    SELECT DISTINCT occurrences.sample_id FROM occurrences JOIN drops ON drops.id = occurrences.drop_id
    JOIN samples ON samples.id = occurrences.sample_id
    WHERE drops.state = 'matching' AND samples.group_id IS NULL AND occurrences.sample_id <= :last
"""
FORGOTTEN = "SELECT id FROM samples WHERE forgotten IS NOT NULL"
NEW = f"""
    SELECT id, sha256 FROM samples WHERE forgotten IS NULL AND (id > :since OR id IN ({MATCHING})) ORDER BY id
"""


def main() -> int:
    die_with_parent()
    Image.MAX_IMAGE_PIXELS = None  # the job's own limit is checked before anything is decoded
    with Index.open(Path(sys.argv[1])) as index:
        likeness.prepare()
        if (job := wait_for_job()) is None:
            return 0  # there was nothing to be matched
        store, left = Path(job["store"]), Left([Path(file) for file in job["pictures"]])
        for samples in _new_samples(Path(job["journal"]), index, all_of_it=job["all"]):
            rows = left.find([sha for _, sha in samples])
            made: list[bytes] = []
            for at in np.flatnonzero(rows < 0).tolist():
                if picture := _describe(store, samples[at][1], job["max_pixels"]):
                    rows[at] = len(left) + len(made)
                    made.append(picture)
            if (rows >= 0).any():
                ids = np.array([id_ for id_, _ in samples])[rows >= 0]
                found = index.add(ids.tolist(), left.pick(rows[rows >= 0], made))
                pairs = [[int(one), int(other)] for one, other in found]
                said = {"token": job["token"], "stage": "match", "event": "pairs", "pairs": pairs}
                print(json.dumps(said), flush=True)
    return 0


class Left:
    """What the reading children have left, a row an image."""

    def __init__(self, files: list[Path]) -> None:
        there = [file for file in files if file.exists() and file.stat().st_size >= LEFT.itemsize]
        self.parts = [np.memmap(file, LEFT, "r", shape=(file.stat().st_size // LEFT.itemsize,)) for file in there]
        shas = np.concatenate([np.empty(0, "S32"), *(part["sha256"] for part in self.parts)])
        self.order = np.argsort(shas, kind="stable")
        self.shas = shas[self.order]

    def __len__(self) -> int:
        return len(self.shas)

    def find(self, shas: Sequence[bytes]) -> Ints:
        """The row of each; -1: there is none."""
        if not len(self):
            return np.full(len(shas), -1)
        asked = np.frombuffer(b"".join(shas), "S32")
        at = np.minimum(np.searchsorted(self.shas, asked), len(self) - 1)
        return np.where(self.shas[at] == asked, self.order[at], -1)

    def pick(self, rows: Ints, made: Sequence[bytes]) -> Picked:
        """The descriptors of these rows; those from the last on are of `made`."""
        others = np.frombuffer(b"".join(made), np.uint8).reshape(-1, SIZE)
        return Picked([*(part["descriptor"] for part in self.parts), others], rows)


class Picked:
    """Descriptors, read where they lie: of 50,000 images they are 50 MB."""

    def __init__(self, parts: list[NDArray[np.uint8]], rows: Ints) -> None:
        self.parts, self.rows = parts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | Ints) -> NDArray[np.uint8]:
        rows, first = self.rows[chosen], 0
        found = np.empty((len(rows), SIZE), np.uint8)
        for part in self.parts:
            here = (rows >= first) & (rows < first + len(part))
            found[here] = part[rows[here] - first]
            first += len(part)
        return found


def _new_samples(journal: Path, index: Index, *, all_of_it: bool) -> Iterator[list[tuple[int, bytes]]]:
    """Those that the index lacks, in the order of their ids."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=30)) as connection:
        last = index.last
        index.remove([id_ for (id_,) in connection.execute(MATCHING, {"last": last})])
        index.remove([id_ for (id_,) in connection.execute(FORGOTTEN)])
        rows = connection.execute(NEW, {"since": -1 if all_of_it else index.last, "last": last})
        while chunk := rows.fetchmany(CHUNK):
            lacking = set(index.missing([id_ for id_, _ in chunk]))
            if new := [(id_, sha) for id_, sha in chunk if id_ in lacking]:
                yield new


def _describe(store: Path, sha: bytes, max_pixels: float) -> bytes | None:
    """From the stored bytes; None: they are not there, are others by now, or of no use any more.

    With store.keep = "reference" a person's own file stands there, and may have become anything.
    """
    try:
        opened, found = open_regular(str(place(store, sha.hex())))
        with open(opened, "rb") as original, _bounded(max_pixels):  # noqa: PTH123  (a descriptor, not a path)
            content = read_few(opened, found.st_size)
            source = original if content is None else io.BytesIO(content)
            if hashlib.file_digest(source, "sha256").digest() != sha:
                return None
            source.seek(0)
            picture = decode(source if content is None else content, max_pixels)[1]
            after = os.fstat(opened)
    except (OSError, SourceUnreadable, Unusable):
        return None
    return picture if (found.st_size, found.st_mtime_ns) == (after.st_size, after.st_mtime_ns) else None


@contextmanager
def _bounded(max_pixels: float) -> Iterator[None]:
    """No more memory than a reading child has, and little more time: until a decoder comes back. Raises Unusable.

    The memory is on top of what this child has by now: the index that it maps grows with the journal.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limit, hard = used + needed(max_pixels), before[1]
    listened = signal.signal(signal.SIGALRM, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, listened)


def _stop(*_: object) -> NoReturn:
    raise Unusable("takes too long to decode")


if __name__ == "__main__":
    sys.exit(main())
