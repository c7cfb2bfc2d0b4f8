"""Where each sample stands: its class as people last said, its role, and whether it may be used.

All of it follows from other tables, and is kept so that a question about all samples costs no more than its answer.
Triggers of the journal (migration 0008) note which samples a change touches; before the change is committed, by whoever
opened the journal with `open_journal`, what was noted is worked out again. New samples stand somewhere once their drop
is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, delete, exists, func, or_, select
from sqlalchemy.dialects.sqlite import insert

from daemon import labels
from daemon.schema import flags, groups, samples, stale, standings
from policies.facts import Role
from policies.labels import SURE, UNLIKELY

USABLE = "usable"
LABELLED = (USABLE, "flagged", "ungrouped")  # people agree on its class
AUDITED = (USABLE, "flagged")
AT_ONCE = 10_000  # rows that are read ahead

Counts = Mapping[tuple[str, str | None, Role | None], int]  # (state, class, role) -> samples


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sample on whose class all its occurrences agree, with a role."""

    sample: int
    sha256: bytes
    name: str  # of the class
    role: Role
    drop: int  # the last that said so


def refresh(connection: Connection) -> None:
    """Works out anew where the samples stand that this transaction has touched."""
    if connection.exec_driver_sql("SELECT 1 FROM stale LIMIT 1").first() is None:
        return
    found = _work_out()
    new = insert(standings).from_select(found.selected_columns.keys(), found)
    told = ("class_name", "role", "state", "drop_id")
    other = or_(*(standings.c[name].is_distinct_from(new.excluded[name]) for name in told))
    values = {standings.c[name]: new.excluded[name] for name in (*told, "changed")}
    connection.execute(new.on_conflict_do_update(index_elements=["sample_id"], set_=values, where=other))
    connection.execute(delete(stale))


def _work_out() -> Select[Any]:
    said = labels.of_samples(select(stale.c.sample_id))
    free, held = said.c.held.is_(False), said.c.held.is_(True)
    by_sample = (
        select(
            said.c.sample_id,
            func.min(case((free, said.c.class_name))).label("first_name"),
            func.max(case((free, said.c.class_name))).label("name"),
            func.max(case((free & said.c.class_name.is_not(None), said.c.drop_id))).label("drop_id"),
            func.min(case((held, said.c.class_name))).label("first_held_name"),
            func.max(case((held, said.c.class_name))).label("held_name"),
            func.max(said.c.drop_id).label("last"),
        )
        .group_by(said.c.sample_id)
        .subquery()
    )
    # The first and the last of its classes in their order: where they are the same, there is one.
    one, several = by_sample.c.first_name == by_sample.c.name, by_sample.c.first_name != by_sample.c.name
    held_alone = by_sample.c.name.is_(None) & by_sample.c.held_name.is_not(None)
    sure = exists().where(flags.c.sample_id == samples.c.id, flags.c.state == "open", beyond_doubt())
    state = case(
        (samples.c.forgotten.is_not(None), "forgotten"),
        (by_sample.c.sample_id.is_(None), "gone"),
        (several, "conflict"),
        (one & groups.c.role.is_(None), "ungrouped"),
        # Left out of training until a person has answered, never out of judge.
        (one & (groups.c.role != "judge") & sure, "flagged"),
        (one, USABLE),
        (held_alone, "held"),
        else_="unlabelled",
    )
    next_ = select(func.coalesce(func.max(standings.c.changed), 0) + 1).scalar_subquery()
    return (
        select(
            samples.c.id.label("sample_id"),
            case(
                (one, by_sample.c.name),
                (held_alone & (by_sample.c.first_held_name == by_sample.c.held_name), by_sample.c.held_name),
            ).label("class_name"),
            groups.c.role.label("role"),
            state.label("state"),
            func.coalesce(by_sample.c.drop_id, by_sample.c.last).label("drop_id"),
            next_.label("changed"),
        )
        .select_from(stale)
        .join(samples, samples.c.id == stale.c.sample_id)
        .outerjoin(groups, groups.c.id == samples.c.group_id)
        .outerjoin(by_sample, by_sample.c.sample_id == samples.c.id)
        .where(samples.c.id > 0)  # SQLite takes ON CONFLICT for a condition of the join otherwise
    )


def beyond_doubt() -> ColumnElement[bool]:
    """Whether a flag is (policies.labels.is_sure), for a query."""
    return and_(flags.c.suggested_score > SURE, flags.c.score < UNLIKELY)


def latest(connection: Connection) -> int:
    """The number of the last change to any standing."""
    refresh(connection)
    return int(connection.execute(select(func.coalesce(func.max(standings.c.changed), 0))).scalar_one())


def count(connection: Connection) -> Counts:
    """How many samples there are of each state, class and role."""
    refresh(connection)
    what = (standings.c.state, standings.c.class_name, standings.c.role)
    rows = connection.execute(select(*what, func.count()).group_by(*what))
    return {(state, name, role): number for state, name, role, number in rows}


def count_usable(connection: Connection, ids: Collection[int]) -> Counter[tuple[str | None, Role | None]]:
    """How many of these samples may be used, by class and role."""
    what = (standings.c.class_name, standings.c.role)
    mine = (standings.c.sample_id.in_(ids), standings.c.state == USABLE)
    rows = connection.execute(select(*what, func.count()).where(*mine).group_by(*what))
    return Counter({(name, role): number for name, role, number in rows})


def by_class(counts: Counts) -> Counter[str]:
    """How many samples of each class may be used."""
    found: Counter[str] = Counter()
    for (state, name, _), number in counts.items():
        if state == USABLE and name is not None:
            found[name] += number
    return found


def classes(connection: Connection) -> list[str]:
    """Those that any sample is of, as people agree."""
    return sorted({name for state, name, _ in count(connection) if name is not None and state in LABELLED})


def usable(connection: Connection, *, flagged: bool = False) -> Iterator[Labelled]:
    """Every sample that may be used, sorted by hash; with those, too, whose label is flagged beyond doubt."""
    refresh(connection)
    states = AUDITED if flagged else (USABLE,)
    query = _labelled().where(standings.c.state.in_(states)).order_by(samples.c.sha256)
    for some in connection.execute(query.execution_options(yield_per=AT_ONCE)).partitions():
        yield from (Labelled(*row) for row in some)


def usable_of(connection: Connection, ids: Select[int]) -> list[Labelled]:
    """Of these samples what may be used, and those whose label is flagged beyond doubt."""
    refresh(connection)
    of_them = (standings.c.sample_id.in_(ids), standings.c.state.in_(AUDITED))
    return [Labelled(*row) for row in connection.execute(_labelled().where(*of_them))]


def forgotten(connection: Connection) -> set[bytes]:
    """The hashes of what was forgotten."""
    refresh(connection)
    query = select(samples.c.sha256).join(standings, standings.c.sample_id == samples.c.id)
    return set(connection.execute(query.where(standings.c.state == "forgotten")).scalars())


def usable_since(connection: Connection, number: int, classes_known: Sequence[str]) -> list[Labelled]:
    """What may be used and was not when the change had that number, or is of another class since.

    classes_known: those that were used then; of others all is told, whenever it came.
    """
    refresh(connection)
    changed = _labelled().add_columns(standings.c.state).where(standings.c.changed > number)
    found = [Labelled(*row) for *row, state in connection.execute(changed) if state == USABLE]
    if others := set(classes(connection)) - set(classes_known):
        of_others = (standings.c.state == USABLE, standings.c.class_name.in_(others), standings.c.changed <= number)
        found += [Labelled(*row) for row in connection.execute(_labelled().where(*of_others))]
    return found


def unusable_since(connection: Connection, number: int) -> Iterator[bytes]:
    """The hashes of what may not be used, of all that changed after that number."""
    refresh(connection)
    query = _labelled().add_columns(standings.c.state).where(standings.c.changed > number)
    for some in connection.execute(query.execution_options(yield_per=AT_ONCE)).partitions():
        yield from (row.sha256 for row in some if row.state != USABLE)


def unlabelled(connection: Connection, after: int, also: Collection[int]) -> list[tuple[int, bytes, None]]:
    """Drop, hash and no class of what last came without one, in a later drop than this one or in one of the others."""
    refresh(connection)
    which = or_(standings.c.drop_id > after, standings.c.drop_id.in_(also))
    query = select(standings.c.drop_id, samples.c.sha256).join(samples, samples.c.id == standings.c.sample_id)
    return [
        (drop, sha, None) for drop, sha in connection.execute(query.where(standings.c.state == "unlabelled", which))
    ]


def _labelled() -> Select[Any]:
    what = (samples.c.id, samples.c.sha256, standings.c.class_name, standings.c.role, standings.c.drop_id)
    return select(*what).join(standings, standings.c.sample_id == samples.c.id)
