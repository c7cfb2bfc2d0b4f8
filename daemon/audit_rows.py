"""What an audit of labels is asked about: the labels of the drops that are due, or all there are, as a file of rows.

A row is one of a snapshot's (daemon/snapshot.py). Which of the two it is, is decided on what the last audit of all left
in its folder (pipeline/kept_audit.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, func, select

from daemon import labels, standings
from daemon.journal import chunks
from daemon.schema import drops, occurrences
from daemon.snapshot import ROW
from daemon.standings import Labelled
from policies.facts import ROLES
from policies.labels import Folds, needs_folds

KEPT = "audit"  # beside a network's embeddings


@dataclass(frozen=True, slots=True)
class Written:
    """A file of rows, the names of their classes in the order of their numbers, and how many rows there are."""

    file: Path
    classes: list[str]
    number: int


def of_drops(connection: Connection, due: Sequence[int]) -> list[Labelled]:
    """The samples of these drops that can be used, each with the class that it stands in now."""
    live = (occurrences.c.gone.is_(None), occurrences.c.class_name.is_not(None))
    come = (select(occurrences.c.sample_id).where(occurrences.c.drop_id.in_(some), *live) for some in chunks(due))
    return sorted({row for query in come for row in standings.usable_of(connection, query)}, key=lambda row: row.sample)


def count_changes(connection: Connection) -> int:
    """A count that grows with each file that goes from a folder of labelled images, and each answer of a person."""
    labelled = select(drops.c.folder).where(drops.c.audited.is_not(None)).distinct()
    gone = connection.execute(select(func.sum(drops.c.gone)).where(drops.c.folder.in_(labelled))).scalar()
    said = connection.execute(select(func.count()).where(labels.reviewed())).scalar_one()
    return (gone or 0) + said


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


def write(file: Path, rows: Iterable[Labelled]) -> Written:
    """Writes the rows, as they come."""
    index: dict[str, int] = {}
    number = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        for row in rows:
            label = index.setdefault(row.name, len(index))
            stream.write(ROW.pack(row.sha256, label, ROLES.index(row.role)))
            number += 1
    return Written(file, list(index), number)
