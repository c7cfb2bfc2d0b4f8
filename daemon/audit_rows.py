"""What an audit of labels is asked about: the labels of the drops that are due, or all there are, as a file of rows.

A row is one of a snapshot's (daemon/snapshot.py). Which of the two it is, is decided on what the last audit of all left
in its folder (pipeline/kept_audit.py).
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from sqlalchemy import Connection, func, select

from daemon import labels
from daemon.journal import chunks
from daemon.schema import drops, groups, occurrences, samples
from daemon.schema import labels as answers
from daemon.snapshot import Labelled
from policies.facts import ROLES
from policies.labels import Folds, needs_folds

KEPT = "audit"  # beside a network's embeddings
_ROW = struct.Struct("<32sHB")


def of_drops(connection: Connection, due: Sequence[int]) -> list[Labelled]:
    """The samples of these drops that can be used, each with the class that it stands in now."""
    said = labels.current()
    live = (occurrences.c.gone.is_(None), occurrences.c.class_name.is_not(None))
    come = (select(occurrences.c.sample_id).where(occurrences.c.drop_id.in_(some), *live) for some in chunks(due))
    ids = sorted({sample for query in come for sample in connection.execute(query).scalars()})
    asked = (
        select(samples.c.id, samples.c.sha256, said.c.class_name, groups.c.role)
        .select_from(said)
        .join(samples, samples.c.id == said.c.sample_id)
        .join(groups, groups.c.id == samples.c.group_id)
        .where(samples.c.forgotten.is_(None))
        .distinct()
        .order_by(samples.c.id)
    )
    found: list[Labelled] = []
    for some in chunks(ids):
        rows = connection.execute(asked.where(said.c.sample_id.in_(some)))
        for _, same in groupby(rows, key=lambda row: row[0]):
            row, *others = same
            if not others:  # else it is in two classes at once
                found.append(Labelled(*row))
    return found


def count_changes(connection: Connection) -> int:
    """A count that grows with each file that goes from a folder of labelled images, and each answer of a person."""
    labelled = select(drops.c.folder).where(drops.c.audited.is_not(None)).distinct()
    gone = connection.execute(select(func.sum(drops.c.gone)).where(drops.c.folder.in_(labelled))).scalar()
    said = connection.execute(select(func.max(answers.c.id))).scalar()
    return (gone or 0) + (said or 0)


def are_in_use(connection: Connection, classes: Iterable[str]) -> bool:
    """Whether any file still stands in each of these classes; the newest are looked at first."""
    for name in classes:
        live = (occurrences.c.class_name == name, occurrences.c.gone.is_(None))
        one = select(occurrences.c.id).where(*live).order_by(occurrences.c.id.desc()).limit(1)
        reviewed = select(answers.c.id).where(answers.c.class_name == name).limit(1)
        if connection.execute(one).first() is None and connection.execute(reviewed).first() is None:
            return False
    return True


def why_all(embeddings: Path, rows: Sequence[Labelled], changes: int) -> str:
    """Why these rows cannot be audited alone, and all have to be; "": they can."""
    fitted = Counter(row.name for row in rows if row.role != "judge")
    return needs_folds(_read_folds(embeddings / KEPT, changes), len(rows), fitted)


def _read_folds(folder: Path, changes: int) -> Folds | None:
    """What the last audit of all stood on; None: there was none whose traces can be read."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        file = folder / "since.json"
        since = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        changed = max(changes - about["changed"], 0)
        return Folds(about["audited"], about["fitted"], since.get("audited", 0), since.get("fitted", {}), changed)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(file: Path, rows: Iterable[Labelled]) -> list[str]:
    """Writes the rows and returns the names of their classes, in the order of their numbers."""
    index: dict[str, int] = {}
    with file.open("wb") as stream:
        for row in rows:
            number = index.setdefault(row.name, len(index))
            stream.write(_ROW.pack(row.sha256, number, ROLES.index(row.role)))
    return list(index)
