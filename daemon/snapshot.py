"""Snapshots: the samples, labels and roles of one moment, immutable, named by the hash of their content.

The file: one line of JSON {"format": 1, "id", "classes", "rows"}, then 35 bytes a row, sorted by hash: the SHA-256
(32 bytes), the index of the class (uint16, little-endian), the role (uint8: 0 train, 1 tune, 2 judge).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from daemon import labels
from daemon.journal import now
from daemon.schema import flags, groups, samples, snapshots
from deploy import durable
from policies.facts import ROLES, Role
from policies.labels import is_sure

_ROW = struct.Struct("<32sHB")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sample that can be used: it has occurrences, and they agree on its class."""

    sample: int
    sha256: bytes
    name: str  # of the class
    role: Role


@dataclass(frozen=True, slots=True)
class Snapshot:
    id: str
    classes: tuple[str, ...]
    file: Path
    counts: dict[str, dict[str, int]]  # class -> role -> samples
    left_out: dict[str, int]  # reason -> samples


def usable(connection: Connection) -> tuple[list[Labelled], int]:
    """Every sample that may be used, sorted by hash, and how many are in conflict (in two classes at once).

    One whose label is flagged beyond doubt is left out of training until a person has answered, never out of judge.
    """
    found, conflicts = _read_labels(connection)
    open_ = connection.execute(
        select(flags.c.sample_id, flags.c.score, flags.c.suggested_score).where(flags.c.state == "open")
    )
    flagged = {sample for sample, score, suggested in open_ if is_sure(score, suggested)}
    return [row for row in found if row.role == "judge" or row.sample not in flagged], conflicts


def labelled(connection: Connection) -> list[Labelled]:
    """The same, with those whose labels are flagged: what an audit looks at."""
    return _read_labels(connection)[0]


def _read_labels(connection: Connection) -> tuple[list[Labelled], int]:
    said = labels.current()
    rows = connection.execute(
        select(samples.c.id, samples.c.sha256, groups.c.role, said.c.class_name)
        .select_from(said)
        .join(samples, samples.c.id == said.c.sample_id)
        .join(groups, groups.c.id == samples.c.group_id)
        .where(samples.c.forgotten.is_(None))
        .distinct()
        .order_by(samples.c.sha256)
    ).all()
    several = {sample for sample, number in Counter(row[0] for row in rows).items() if number > 1}
    found = [Labelled(id_, sha, name, role) for id_, sha, role, name in rows if id_ not in several]
    return found, len(several)


def choose_classes(counts: Counter[str], known: Sequence[str], at_least: int) -> tuple[str, ...]:
    """The classes of a snapshot: those the champion knows keep their order, new ones follow by name.

    A client that keeps class indices is not surprised by a new class. A class below `at_least` samples that the
    champion does not know is left out.
    """
    kept = [name for name in known if counts[name]]
    new = sorted(name for name, number in counts.items() if name not in known and number >= at_least)
    return (*kept, *new)


def take(connection: Connection, folder: Path, *, known: Sequence[str], at_least: int) -> Snapshot:
    """Takes a snapshot of what is usable now, writes its file and its row. The same content gives the same id."""
    found, conflicts = usable(connection)
    per_class = Counter(row.name for row in found)
    classes = choose_classes(per_class, known, at_least)
    index = {name: position for position, name in enumerate(classes)}
    rows = [row for row in found if row.name in index]
    body = b"".join(_ROW.pack(row.sha256, index[row.name], ROLES.index(row.role)) for row in rows)
    id_ = hashlib.sha256(json.dumps(classes).encode() + body).hexdigest()[:16]
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(ROLES, 0) for name in classes}
    for row in rows:
        counts[row.name][row.role] += 1
    left_out = {f"class {name} has only {n} samples": n for name, n in per_class.items() if name not in index}
    if flagged := len(labelled(connection)) - len(found):
        left_out["flagged beyond doubt, and not answered yet"] = flagged
    if conflicts:
        left_out["in two classes at once"] = conflicts
    header = {"format": 1, "id": id_, "classes": classes, "rows": len(rows)}
    file = folder / f"{id_}.snapshot"
    if not file.exists():
        _write(file, json.dumps(header).encode() + b"\n" + body)
    connection.execute(
        insert(snapshots)
        .values(id=id_, created=now(), classes=classes, counts=counts, left_out=left_out, file=file.name)
        .on_conflict_do_nothing()
    )
    return Snapshot(id_, classes, file, counts, left_out)


def read(file: Path) -> tuple[tuple[str, ...], dict[bytes, tuple[str, Role]]]:
    """The classes of a snapshot, and class and role of each sample by its hash, from the file alone."""
    with file.open("rb") as stream:
        header = json.loads(stream.readline())
        classes = tuple(header["classes"])
        body = stream.read()
    return classes, {sha: (classes[label], ROLES[role]) for sha, label, role in _unpack(body)}


def _unpack(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    return _ROW.iter_unpack(body)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".writing")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    durable.move(temporary, file)
