"""Flags in the journal: what an audit found becomes rows, what a person answers becomes labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import category

from sqlalchemy import Connection, select, update

from daemon import labels, schema, standings
from daemon.errors import NotFound, UsageError
from daemon.journal import AnyRow, add, get, now
from policies.labels import DropAudit, is_sure
from policies.suggest import nearest

_UNNAMABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of what daemon/intake.py writes as \xNN
ANSWERS = {"accept": "accepted", "keep": "kept", "relabel": "relabelled"}


def due_drops(connection: Connection) -> list[int]:
    """Drops that were read and whose labels were not audited yet."""
    drops, occurrences = schema.drops, schema.occurrences
    labelled = occurrences.c.gone.is_(None) & occurrences.c.class_name.is_not(None)
    found = connection.execute(
        select(drops.c.id)
        .join(occurrences, occurrences.c.drop_id == drops.c.id)
        .where(drops.c.state == "ready", drops.c.audited.is_(None), labelled)
        .distinct()
        .order_by(drops.c.id)
    ).scalars()
    return list(found)


def record(connection: Connection, model: str, found: Mapping[str, Any]) -> None:
    """Writes what an audit by this model found: new flags are opened, those that it no longer sees are withdrawn.

    What a person has said of a sample is not asked about again.
    """
    table = schema.flags
    ids = {row.sha256.hex(): row.id for row in connection.execute(select(schema.samples.c.sha256, schema.samples.c.id))}
    open_ = {row.sample_id: row for row in connection.execute(select(table).where(table.c.state == "open"))}
    said = labels.current()
    reviewed = set(connection.execute(select(said.c.sample_id).where(said.c.reviewed)).scalars())
    seen = set()
    for flag in found["flags"]:
        sample = ids[flag["sample"]]
        if sample in reviewed:
            continue
        seen.add(sample)
        what = {key: flag[key] for key in ("given", "suggested", "score", "suggested_score")}
        about = {**what, "model_id": model, "at": now()}
        if sample in open_:
            connection.execute(update(table).where(table.c.id == open_[sample].id).values(**about))
        else:
            add(connection, table, sample_id=sample, state="open", **about)
    audited = {ids[sha] for sha in found["audited"]}
    gone = [row.id for sample, row in open_.items() if sample in audited - seen]
    for start in range(0, len(gone), 500):
        some = table.c.id.in_(gone[start : start + 500])
        connection.execute(update(table).where(some).values(state="withdrawn", answered=now()))


def count(connection: Connection, drop: int, due: Collection[int], audited: Collection[str]) -> DropAudit:
    """What the audit of these samples (hex) is sure of in one drop, and in those that were in use before."""
    flags, samples = schema.flags, schema.samples
    said = labels.current()
    rows = connection.execute(
        select(samples.c.sha256, said.c.drop_id, flags.c.score, flags.c.suggested_score)
        .select_from(said)
        .join(samples, samples.c.id == said.c.sample_id)
        .outerjoin(flags, (flags.c.sample_id == samples.c.id) & (flags.c.state == "open"))
        .distinct()
    )
    asked = set(audited)
    rows_audited = [row for row in rows if row.sha256.hex() in asked]
    own = [row for row in rows_audited if row.drop_id == drop]
    mine = [_is_sure(row.score, row.suggested_score) for row in own]
    doubtful = sum(row.score is not None for row in own) - sum(mine)
    others = [_is_sure(row.score, row.suggested_score) for row in rows_audited if row.drop_id not in due]
    return DropAudit(drop, len(mine), sum(mine), len(others), sum(others), doubtful)


def _is_sure(score: float | None, suggested_score: float | None) -> bool:
    """Of what is not flagged there are no scores."""
    return score is not None and suggested_score is not None and is_sure(score, suggested_score)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which open flags a person answers: by id, or in bulk by pair of classes, or all of a drop."""

    ids: Sequence[int] = ()
    pair: tuple[str, str] | None = None  # given, suggested
    drop: int | None = None
    new_class: bool = False  # the answer may be a class that no sample has


def answer(connection: Connection, how: str, chosen: Chosen, to: str | None, by: str) -> str:
    """Writes what a person said of flags, as labels; returns it in a sentence. Raises NotFound, UsageError."""
    if how == "relabel":
        check_class(connection, to or "", chosen.new_class)
    found = _choose(connection, chosen)
    for flag in found:
        name = {"accept": flag.suggested, "keep": flag.given}.get(how, to)
        about = {"class_name": name, "source": labels.REVIEW, "by": by, "at": now()}
        add(connection, schema.labels, sample_id=flag.sample_id, **about)
        state = {"state": ANSWERS[how], "by": by, "answered": now()}
        connection.execute(update(schema.flags).where(schema.flags.c.id == flag.id).values(**state))
    return f"flags answered: {len(found)}, {ANSWERS[how]}{f' to {to}' if how == 'relabel' else ''}"


def check_class(connection: Connection, name: str, new: bool) -> None:
    """A class is what a folder of images could be called, and one that there is, unless a new one is meant.

    Raises UsageError with the nearest.
    """
    if not name:
        raise UsageError("to which class? --to CLASS")
    if "/" in name or name.startswith(".") or any(category(sign) in _UNNAMABLE for sign in name):
        raise UsageError(
            f"--to {name!r}: no folder of a class is called so: no «/», no first «.», no control characters"
        )
    occurrences = schema.occurrences
    live = (occurrences.c.gone.is_(None), occurrences.c.class_name.is_not(None))
    known = set(connection.execute(select(occurrences.c.class_name).where(*live).distinct()).scalars())
    known |= set(standings.classes(connection))
    if name not in known and not new:
        near = nearest(name, sorted(known)) or ", ".join(sorted(known)[:5])
        raise UsageError(f"--to {name}: no sample is of this class; nearest: {near}. --new-class makes it one")


def _choose(connection: Connection, chosen: Chosen) -> list[AnyRow]:
    table = schema.flags
    query = select(table).where(table.c.state == "open").order_by(table.c.id)
    if chosen.ids:
        query = query.where(table.c.id.in_(chosen.ids))
    if chosen.pair:
        query = query.where(table.c.given == chosen.pair[0], table.c.suggested == chosen.pair[1])
    if chosen.drop is not None:
        of = schema.occurrences
        query = query.where(table.c.sample_id.in_(select(of.c.sample_id).where(of.c.drop_id == chosen.drop)))
    if not (chosen.ids or chosen.pair or chosen.drop is not None):
        raise UsageError("which flags? Name their numbers, or --pair GIVEN:SUGGESTED, or --drop NUMBER")
    found = list(connection.execute(query))
    missing = sorted(set(chosen.ids) - {row.id for row in found})
    if missing or not found:
        named = f" with the number {', '.join(map(str, missing))}" if missing else ""
        among = f" of drop {chosen.drop}" if chosen.drop is not None else ""
        among += f" of {chosen.pair[0]} taken for {chosen.pair[1]}" if chosen.pair else ""
        raise NotFound(f"there is no open flag{named}{among}; `relearn flags` lists them")
    return found


def release(connection: Connection, drop: int, by: str) -> str:
    """Lets a held drop into the snapshots. Its open flags stay out of training until they are answered."""
    row = get(connection, schema.drops, drop)
    if row.state != "held":
        raise UsageError(f"drop {drop} is not held")
    told = f"{row.reason}; released by {by}"
    connection.execute(update(schema.drops).where(schema.drops.c.id == drop).values(state="ready", reason=told))
    return f"drop {drop} is released: its images are used from the next decision on"
