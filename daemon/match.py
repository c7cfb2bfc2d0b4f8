"""The child that looks for near-duplicates: brings the index up to date with the journal, and tells the pairs found.

    python -m daemon.match JOB.json

JOB.json: {"token", "journal", "index", "store", "pictures": [file, …], "all"}. `pictures` are what the reading children
have left (daemon/decode.py); what they lack is made again from the store. "all": the whole journal is gone through, not
only what is newer than the index. It prints {"token", "stage": "match", "event": "pairs", "pairs": [[id, id], …]}.
Whose drop is still being matched is matched anew: a daemon that was killed may not have heard of its pairs. Of what was
forgotten the index loses its picture.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from daemon.children import die_with_parent
from daemon.decode import decode
from daemon.descriptor import SIZE
from daemon.duplicates import Index
from daemon.originals import Unusable
from daemon.store import place

CHUNK = 50_000  # samples at once
RECORD = 32 + SIZE
MATCHING = """
    SELECT DISTINCT occurrences.sample_id FROM occurrences JOIN drops ON drops.id = occurrences.drop_id
    JOIN samples ON samples.id = occurrences.sample_id
    WHERE drops.state = 'matching' AND samples.group_id IS NULL
"""
FORGOTTEN = "SELECT id FROM samples WHERE forgotten IS NOT NULL"
NEW = f"""
    SELECT id, sha256 FROM samples WHERE forgotten IS NULL AND (id > :since OR id IN ({MATCHING})) ORDER BY id
"""


def main() -> int:
    die_with_parent()
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Image.MAX_IMAGE_PIXELS = None  # intake has checked the size before the image came into the store
    pictures = _read_pictures(job["pictures"])
    with Index.open(Path(job["index"])) as index:
        for samples in _new_samples(Path(job["journal"]), index, all_of_it=job["all"]):
            described = [
                (id_, picture)
                for id_, sha in samples
                if (picture := pictures.get(sha) or _describe(Path(job["store"]), sha))
            ]
            if described:
                ids, found = zip(*described, strict=True)
                pairs = [[int(one), int(other)] for one, other in index.add(ids, found)]
                line = {"token": job["token"], "stage": "match", "event": "pairs", "pairs": pairs}
                print(json.dumps(line), flush=True)
    return 0


def _read_pictures(files: list[str]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for file in map(Path, files):
        content = file.read_bytes() if file.exists() else b""
        for start in range(0, len(content) - RECORD + 1, RECORD):
            found[content[start : start + 32]] = content[start + 32 : start + RECORD]
    return found


def _new_samples(journal: Path, index: Index, *, all_of_it: bool) -> Iterator[list[tuple[int, bytes]]]:
    """Those that the index lacks, in the order of their ids."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=30)) as connection:
        index.remove([id_ for query in (MATCHING, FORGOTTEN) for (id_,) in connection.execute(query)])
        since = -1 if all_of_it else index.last
        rows = connection.execute(NEW, {"since": since})
        while chunk := rows.fetchmany(CHUNK):
            lacking = set(index.missing([id_ for id_, _ in chunk]))
            if new := [(id_, sha) for id_, sha in chunk if id_ in lacking]:
                yield new


def _describe(store: Path, sha: bytes) -> bytes | None:
    """From the stored bytes; None: they are not there, or of no use any more."""
    try:
        return decode(place(store, sha.hex()), float("inf"))[1]
    except (OSError, Unusable):
        return None


if __name__ == "__main__":
    sys.exit(main())
