"""Snapshots: the samples, labels and roles of one moment, immutable, named by the hash of their content.

The file: one line of JSON {"format": 1, "id", "classes", "rows"}, then 35 bytes a row, sorted by hash: the SHA-256
(32 bytes), the index of the class (uint16, little-endian), the role (uint8: 0 train, 1 tune, 2 judge).
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from daemon import standings
from daemon.journal import begin_writing, now
from daemon.schema import snapshots
from daemon.standings import Counts, Labelled
from deploy import durable
from policies.facts import ROLES, Role

ROW = struct.Struct("<32sHB")
_SHA = 32
_LEFT_OUT = {  # standing -> why such samples are in no snapshot
    "flagged": "flagged beyond doubt, and not answered yet",
    "conflict": "in two classes at once",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    id: str
    classes: tuple[str, ...]
    file: Path
    counts: dict[str, dict[str, int]]  # class -> role -> samples
    left_out: dict[str, int]  # reason -> samples


class Rows(Mapping[bytes, tuple[str, Role]]):
    """Class and role of each sample by its hash, in the order of the hashes; read from the file when asked for."""

    def __init__(self, classes: Sequence[str], mapped: mmap.mmap, start: int) -> None:
        self.classes = tuple(classes)
        self._mapped = mapped
        self._body = memoryview(mapped)[start:]

    def __len__(self) -> int:
        return len(self._body) // ROW.size

    def __iter__(self) -> Iterator[bytes]:
        return (sha for sha, _, _ in ROW.iter_unpack(self._body))

    def __getitem__(self, sha: bytes) -> tuple[str, Role]:
        at = bisect_left(range(len(self)), sha, key=self._sha)
        if at == len(self) or self._sha(at) != sha:
            raise KeyError(sha.hex())
        _, label, role = ROW.unpack_from(self._body, at * ROW.size)
        return self.classes[label], ROLES[role]

    def items(self) -> ItemsView[bytes, tuple[str, Role]]:
        return _Items(self)

    def of_role(self, role: Role) -> Iterator[tuple[bytes, str]]:
        """Hash and class of each sample of this role."""
        wanted = ROLES.index(role)
        try:
            for sha, label, given in ROW.iter_unpack(self._body):
                if given == wanted:
                    yield sha, self.classes[label]
        finally:
            self._mapped.madvise(mmap.MADV_DONTNEED)  # of a million rows 35 MB would stay

    def all(self) -> Iterator[tuple[bytes, tuple[str, Role]]]:
        return ((sha, (self.classes[label], ROLES[role])) for sha, label, role in ROW.iter_unpack(self._body))

    def _sha(self, at: int) -> bytes:
        return bytes(self._body[at * ROW.size : at * ROW.size + _SHA])


class _Items(ItemsView[bytes, tuple[str, Role]]):
    """In one pass over the rows: the inherited view looks each of them up."""

    _mapping: Rows

    def __iter__(self) -> Iterator[tuple[bytes, tuple[str, Role]]]:
        return self._mapping.all()


def choose_classes(counts: Mapping[str, int], known: Sequence[str], at_least: int) -> tuple[str, ...]:
    """The classes of a snapshot: those the champion knows keep their order, new ones follow by name.

    A client that keeps class indices is not surprised by a new class. A class below `at_least` samples that the
    champion does not know is left out.
    """
    kept = [name for name in known if counts.get(name)]
    new = sorted(name for name, number in counts.items() if name not in known and number >= at_least)
    return (*kept, *new)


def take(connection: Connection, folder: Path, *, known: Sequence[str], at_least: int) -> Snapshot:
    """Takes a snapshot of what is usable now, writes its file and its row. The same content gives the same id.

    Where no sample stands elsewhere than when one was taken of the same classes, it is that one.
    """
    begin_writing(connection)  # all that is read is of one moment
    standing = standings.count(connection)
    usable = standings.by_class(standing)
    classes = choose_classes(usable, known, at_least)
    counts = {name: {str(role): standing.get((standings.USABLE, name, role), 0) for role in ROLES} for name in classes}
    left_out, latest = _left_out(standing, usable, classes), standings.latest(connection)
    if (same := _find(connection, folder, classes, latest)) is not None:
        return Snapshot(same, classes, folder / f"{same}.snapshot", counts, left_out)
    id_ = _write(folder, classes, sum(usable[name] for name in classes), standings.usable(connection))
    row = insert(snapshots).values(
        id=id_, created=now(), classes=classes, counts=counts, left_out=left_out, file=f"{id_}.snapshot",
        changed=latest,
    )  # fmt: skip
    # Of the same content as before: what changes is counted from now on.
    connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"changed": row.excluded.changed}))
    return Snapshot(id_, classes, folder / f"{id_}.snapshot", counts, left_out)


def take_nothing(connection: Connection, folder: Path) -> str:
    """The snapshot of no images, for a model of which nobody here knows what it learnt from; returns its id."""
    id_ = _write(folder, (), 0, ())
    row = insert(snapshots).values(id=id_, created=now(), classes=[], counts={}, left_out={}, file=f"{id_}.snapshot")
    connection.execute(row.on_conflict_do_nothing())
    return id_


def _find(connection: Connection, folder: Path, classes: Sequence[str], latest: int) -> str | None:
    """A snapshot of these classes since which nothing has changed."""
    taken = select(snapshots.c.id).where(snapshots.c.changed == latest)
    for row in connection.execute(taken):
        with suppress(OSError):  # a file that is away or damaged is written again
            if read(folder / f"{row.id}.snapshot")[0] == tuple(classes):
                return str(row.id)
    return None


def _left_out(standing: Counts, usable: Mapping[str, int], classes: Collection[str]) -> dict[str, int]:
    few = {f"class {name} has only {n} samples": n for name, n in usable.items() if name not in classes}
    of_state: Counter[str] = Counter()
    for (state, _, _), number in standing.items():
        of_state[state] += number
    return few | {why: of_state[state] for state, why in _LEFT_OUT.items() if of_state[state]}


def known(file: Path) -> Rows | None:
    """The rows of a snapshot that may have gone, or be that of a model that was trained elsewhere; None: it has."""
    try:
        return read(file)[1]
    except OSError:
        return None


def read(file: Path) -> tuple[tuple[str, ...], Rows]:
    """The classes of a snapshot and its rows, from the file alone, which must stay as it is meanwhile.

    Raises OSError, also where it is damaged.
    """
    with file.open("rb") as stream:
        try:
            header = json.loads(stream.readline())
            classes, promised = tuple(header["classes"]), header["rows"] * ROW.size
        except (ValueError, KeyError, TypeError):
            raise _damaged(file) from None
        start, size = stream.tell(), os.fstat(stream.fileno()).st_size
        if size - start != promised:
            raise _damaged(file)
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return classes, Rows(classes, mapped, start)


def _damaged(file: Path) -> OSError:
    return OSError(errno.EIO, "is no whole snapshot: restore it from a backup, or remove it", str(file))


def _write(folder: Path, classes: Sequence[str], rows: int, found: Iterable[Labelled]) -> str:
    """Writes the file of those samples that are of these classes, sorted as they come; returns the snapshot's id."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {name: number for number, name in enumerate(classes)}
    roles = {role: number for number, role in enumerate(ROLES)}
    header = {"format": 1, "id": "0" * 16, "classes": list(classes), "rows": rows}
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    aside = folder / f"{os.getpid()}.writing"
    try:
        with aside.open("wb") as stream:
            stream.write(json.dumps(header).encode() + b"\n")
            packed = (ROW.pack(row.sha256, labels[row.name], roles[row.role]) for row in found if row.name in labels)
            while part := b"".join(islice(packed, standings.AT_ONCE)):
                digest.update(part)
                stream.write(part)
            header["id"] = digest.hexdigest()[:16]
            stream.seek(0)
            stream.write(json.dumps(header).encode())  # as long as before
            stream.flush()
            os.fsync(stream.fileno())
        durable.move(aside, folder / f"{header['id']}.snapshot")
    finally:
        aside.unlink(missing_ok=True)
    return str(header["id"])
