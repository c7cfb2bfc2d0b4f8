"""Images that stand in two classes at once: used nowhere, until a person says which one is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from daemon import labels, schema, standings
from daemon.errors import NotFound, UsageError
from daemon.flags import check_class
from daemon.journal import add, now

SHORTEST = 8  # signs of a hash that name an image

View = dict[str, Any]


def find(connection: Connection) -> list[View]:
    """Each image in conflict, with its classes and files."""
    standings.refresh(connection)
    said, occurrences, samples = labels.current(), schema.occurrences, schema.samples
    conflicting = labels.conflicting()
    classes: dict[int, set[str]] = {}
    for sample, name in connection.execute(
        select(said.c.sample_id, said.c.class_name).where(said.c.sample_id.in_(conflicting))
    ):
        classes.setdefault(sample, set()).add(name)
    found: dict[int, View] = {}
    for row in connection.execute(
        select(samples.c.id, samples.c.sha256, occurrences.c.folder, occurrences.c.path)
        .join(occurrences, occurrences.c.sample_id == samples.c.id)
        .where(samples.c.id.in_(conflicting), occurrences.c.gone.is_(None), occurrences.c.class_name.is_not(None))
        .order_by(samples.c.id, occurrences.c.path)
    ):
        view = found.setdefault(row.id, {"sha256": row.sha256.hex(), "classes": sorted(classes[row.id]), "files": []})
        view["files"].append(str(Path(row.folder) / row.path))
    return list(found.values())


def settle(
    connection: Connection, named: Sequence[str], pair: Sequence[str] | None, to: str, by: str, *, new_class: bool
) -> str:
    """Writes down, as a label, of which class images are: by hash, or all that stand in these two classes.

    Returns it in a sentence. Raises NotFound, UsageError; nothing is written then.
    """
    samples = schema.samples
    check_class(connection, to, new_class)
    chosen = _choose(find(connection), named, pair)
    for sha in chosen:
        sample = connection.execute(select(samples.c.id).where(samples.c.sha256 == bytes.fromhex(sha))).scalar_one()
        about = {"class_name": to, "source": labels.REVIEW, "by": by, "at": now()}
        add(connection, schema.labels, sample_id=sample, **about)
    return f"conflicts settled: {len(chosen)}, as {to}"


def _choose(views: list[View], named: Sequence[str], pair: Sequence[str] | None) -> set[str]:
    """Their hashes."""
    if not named and not pair:
        raise UsageError("which images? Name their hashes, or --pair CLASS:CLASS")
    chosen = {view["sha256"] for view in views if pair and sorted(pair) == view["classes"]}
    if pair and not chosen:
        raise NotFound(f"no image stands in {' and '.join(pair)} alone; `relearn conflicts` lists them")
    for name in named:
        same = [view for view in views if view["sha256"].startswith(name.lower())]
        if len(name) < SHORTEST or len(same) > 1:
            raise UsageError(f"{name}: too short to name one image; {SHORTEST} signs of its hash at least")
        if not same:
            raise NotFound(f"no image in conflict has a hash that begins with {name}; `relearn conflicts` lists them")
        chosen.add(same[0]["sha256"])
    return chosen
