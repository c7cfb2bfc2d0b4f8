"""Flags in the journal: what an audit found becomes rows, what a person answers becomes labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import category

from sqlalchemy import Connection, func, select, update

from daemon import labels, schema, standings
from daemon.errors import NotFound, UsageError
from daemon.journal import AnyRow, add, change, chunks, get, now
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


def record(connection: Connection, model: str, found: Mapping[str, Any], audited: Collection[int] | None) -> None:
    """Writes what an audit by this model found: new flags are opened, those that it no longer sees are withdrawn.

    audited: the samples that were; None: all that are in use, but for those that it names. What a person has said of a
    sample is not asked about again.
    """
    table = schema.flags
    flags = {bytes.fromhex(flag["sample"]): flag for flag in found["flags"]}
    ids = _ids(connection, flags)
    reviewed = _reviewed(connection, ids.values())
    open_ = _open(connection, audited)
    seen = set()
    for sha, flag in flags.items():
        sample = ids[sha]
        if sample in reviewed:
            continue
        seen.add(sample)
        what = {key: flag[key] for key in ("given", "suggested", "score", "suggested_score")}
        about = {**what, "model_id": model, "at": now()}
        if sample in open_:
            change(connection, table, open_[sample].id, **about)
        else:
            add(connection, table, sample_id=sample, state="open", **about)
    unseen = open_.keys() - seen
    if audited is None:
        unseen = _in_use(connection, unseen) - set(_ids(connection, map(bytes.fromhex, found["unaudited"])).values())
    for some in chunks(open_[sample].id for sample in unseen):
        connection.execute(update(table).where(table.c.id.in_(some)).values(state="withdrawn", answered=now()))


def _ids(connection: Connection, shas: Iterable[bytes]) -> dict[bytes, int]:
    samples = schema.samples
    return {
        row.sha256: row.id
        for some in chunks(shas)
        for row in connection.execute(select(samples.c.sha256, samples.c.id).where(samples.c.sha256.in_(some)))
    }


def _open(connection: Connection, samples: Collection[int] | None) -> dict[int, AnyRow]:
    """The open flags of these samples, by sample; None: all."""
    table = schema.flags
    asked = select(table).where(table.c.state == "open")
    if samples is None:
        return {row.sample_id: row for row in connection.execute(asked)}
    of = (asked.where(table.c.sample_id.in_(some)) for some in chunks(samples))
    return {row.sample_id: row for query in of for row in connection.execute(query)}


def _reviewed(connection: Connection, samples: Iterable[int]) -> set[int]:
    """Those of these samples whose class a person has said."""
    said = labels.current()
    asked = select(said.c.sample_id).where(said.c.reviewed)
    return {
        sample
        for some in chunks(samples)
        for sample in connection.execute(asked.where(said.c.sample_id.in_(some))).scalars()
    }


def _in_use(connection: Connection, samples: Iterable[int]) -> set[int]:
    """Those of these samples that stand in one class."""
    said = labels.current()
    asked = select(said.c.sample_id).group_by(said.c.sample_id).having(func.count(said.c.class_name.distinct()) == 1)
    return {
        sample
        for some in chunks(samples)
        for sample in connection.execute(asked.where(said.c.sample_id.in_(some))).scalars()
    }


def count(connection: Connection, due: Sequence[int], audited: Collection[int], number: int) -> list[DropAudit]:
    """What the audit of these samples is sure of in each drop that was due, and in all else that was audited before.

    number: how many were, with those of before.
    """
    occurrences = schema.occurrences
    live = occurrences.c.gone.is_(None) & occurrences.c.class_name.is_not(None)
    of: dict[int, set[int]] = {drop: set() for drop in due}
    for some in chunks(due):
        rows = select(occurrences.c.drop_id, occurrences.c.sample_id).where(live, occurrences.c.drop_id.in_(some))
        for drop, sample in connection.execute(rows):
            of[drop].add(sample)
    asked = set(audited)
    own = {drop: samples & asked for drop, samples in of.items()}
    sure = {id_: is_sure(row.score, row.suggested_score) for id_, row in _open(connection, asked).items()}
    others = max(number - len(set().union(*own.values())), 0)
    others_sure = min(_count_sure(connection), others)
    return [
        DropAudit(
            drop,
            len(samples),
            flagged := sum(sure.get(sample, False) for sample in samples),
            others,
            others_sure,
            sum(sample in sure for sample in samples) - flagged,
        )
        for drop, samples in own.items()
    ]


def _count_sure(connection: Connection) -> int:
    """Labels in use that are flagged beyond doubt, those of drops that are being audited apart."""
    table, occurrences, drops = schema.flags, schema.occurrences, schema.drops
    used = (
        select(occurrences.c.id)
        .join(drops, drops.c.id == occurrences.c.drop_id)
        .where(occurrences.c.sample_id == table.c.sample_id)
        .where(occurrences.c.gone.is_(None), occurrences.c.class_name.is_not(None))
        .where(drops.c.state != "held", drops.c.audited.is_not(None))
        .exists()
    )
    beyond = (table.c.state == "open", standings.beyond_doubt())
    return connection.execute(select(func.count()).select_from(table).where(*beyond, used)).scalar_one()


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
