"""Which group a labelled sample joins, once and for ever: the user's key's, its near-duplicates', or one of its own.

A group lies in one role. A sample that is near to groups of two roles joins none and is used nowhere: in either it
would leak what the other is to be judged by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, or_, select
from sqlalchemy.dialects.sqlite import insert as upsert

from daemon import roles
from daemon.journal import add_many, chunks, now
from daemon.schema import groups, near_duplicates, occurrences, samples
from policies.facts import Role

NOTHING: frozenset[Any] = frozenset()
AT_ONCE = 10_000  # rows that are read ahead


class _Cluster(NamedTuple):
    """New samples that must share a role, and the groups that they are near to already."""

    key: str
    members: list[int]
    near: set[int] | frozenset[int]


def remember(connection: Connection, pairs: Iterable[tuple[int, int]]) -> None:
    """Writes down pairs of near-duplicates (sample ids)."""
    rows = [{"sample_id": max(pair), "twin_id": min(pair), "at": now()} for pair in pairs]
    if rows:
        connection.execute(upsert(near_duplicates).on_conflict_do_nothing(), rows)


def place(connection: Connection, drop: int, shares: Mapping[Role, float]) -> None:
    """Gives each labelled sample of a drop that has no group yet its group, and new groups their role."""
    shas, names, keys = _unplaced(connection, drop)
    if not shas:
        return
    balance = roles.Balance(roles.count_roles(connection), shares)
    twins = _twins(connection, drop, shas.keys() - keys.keys())
    clusters = [
        *_by_key(connection, keys),
        *_by_likeness(connection, [id_ for id_ in shas if id_ in twins and id_ not in keys], shas, twins),
    ]
    known = _roles_of(connection, {group for cluster in clusters for group in cluster.near})
    first = connection.execute(select(func.coalesce(func.max(groups.c.id), 0))).scalar_one() + 1
    moment = now()
    new: list[tuple[int, str, Role, float]] = []
    joined: list[tuple[int, int]] = []
    # The largest first: what is small can still make up for what is not.
    for cluster in sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.key)):
        near = {known[group] for group in cluster.near} if cluster.near else NOTHING
        if len(near) > 1:
            continue  # near to two roles
        coming: dict[str, int] = {}
        for sample in cluster.members:
            coming[names[sample]] = coming.get(names[sample], 0) + 1
        if near:
            (role,), group = near, min(cluster.near)
            balance.take(coming, role)
        else:
            group = first + len(new)
            new.append((group, cluster.key, balance.give(coming, cluster.key), moment))
        joined += [(group, sample) for sample in cluster.members]
    for group, sample in enumerate((id_ for id_ in shas if id_ not in keys and id_ not in twins), first + len(new)):
        key = shas[sample].hex()  # alone, as most
        new.append((group, key, balance.give({names[sample]: 1}, key), moment))
        joined.append((group, sample))
    add_many(connection, groups, ("id", "key", "role", "given"), new)
    if joined:
        connection.exec_driver_sql("UPDATE samples SET group_id = ? WHERE id = ?", joined)


def _unplaced(connection: Connection, drop: int) -> tuple[dict[int, bytes], dict[int, str], dict[int, str]]:
    """The drop's labelled samples without a group, in the order of their hashes: hash, class and the user's key."""
    shas, names, keys = {}, {}, {}
    query = (
        select(samples.c.id, samples.c.sha256, occurrences.c.class_name, occurrences.c.group_key)
        .join(occurrences, occurrences.c.sample_id == samples.c.id)
        .where(
            occurrences.c.drop_id == drop,
            occurrences.c.gone.is_(None),
            occurrences.c.class_name.is_not(None),
            samples.c.group_id.is_(None),
        )
        .order_by(samples.c.sha256)
    )
    for some in connection.execute(query.execution_options(yield_per=AT_ONCE)).partitions():
        for sample, sha, name, key in some:
            shas[sample], names[sample] = sha, name
            if key is not None:
                keys[sample] = key
    return shas, names, keys


def _by_key(connection: Connection, keys: Mapping[int, str]) -> Iterator[_Cluster]:
    members: dict[str, list[int]] = defaultdict(list)
    for sample, key in keys.items():
        members[f"key:{key}"].append(sample)
    for key, its in members.items():
        found = connection.execute(select(groups.c.id).where(groups.c.key == key)).scalar()
        yield _Cluster(key, its, NOTHING if found is None else {found})


def _by_likeness(
    connection: Connection, new: list[int], shas: Mapping[int, bytes], twins: Mapping[int, set[int]]
) -> Iterator[_Cluster]:
    """Connected by pairs of near-duplicates, also by way of samples that have no group yet themselves."""
    grouped = _groups_of(connection, twins)
    seen: set[int] = set()
    for sample in new:
        if sample in seen:
            continue
        members: list[int] = []
        near: set[int] = set()
        waiting = [sample]
        seen.add(sample)
        while waiting:
            at = waiting.pop()
            if at in shas:
                members.append(at)
            for twin in twins.get(at, ()):
                if twin in grouped:
                    near.add(grouped[twin])
                elif twin not in seen:
                    seen.add(twin)
                    waiting.append(twin)
        yield _Cluster(shas[sample].hex(), members, near)


def _twins(connection: Connection, drop: int, new: Collection[int]) -> dict[int, set[int]]:
    """The near-duplicates of a drop's new samples, and of those of them that have no group, and so on."""
    table, here = near_duplicates, occurrences.c.drop_id == drop
    own, other = table.c.sample_id, table.c.twin_id
    of_drop = (
        select(own, other).join(occurrences, occurrences.c.sample_id == own).where(here)
        .union(select(own, other).join(occurrences, occurrences.c.sample_id == other).where(here))
    )  # fmt: skip
    pairs = [(one, twin) for one, twin in connection.execute(of_drop)]
    found: dict[int, set[int]] = {}
    wanted = set(new)
    while wanted:
        for pair in pairs:
            for at, twin in (pair, pair[::-1]):
                if at in wanted:
                    found.setdefault(at, set()).add(twin)
        seen = wanted | found.keys()
        reached = {twin for at in wanted for twin in found.get(at, ())} - seen
        wanted = reached - _groups_of(connection, reached).keys()
        pairs = [pair for chunk in chunks(wanted) for pair in _pairs_of(connection, chunk)]
    return found


def _pairs_of(connection: Connection, chunk: list[int]) -> list[tuple[int, int]]:
    own, other = near_duplicates.c.sample_id, near_duplicates.c.twin_id
    chosen = select(own, other).where(or_(own.in_(chunk), other.in_(chunk)))
    return [(one, twin) for one, twin in connection.execute(chosen)]


def _groups_of(connection: Connection, ids: Collection[int] | Mapping[int, set[int]]) -> dict[int, int]:
    """The group of each of these samples (and of the twins in a mapping) that has one."""
    wanted = set(ids)
    if isinstance(ids, Mapping):
        wanted = wanted.union(*ids.values())
    found: dict[int, int] = {}
    for chunk in chunks(wanted):
        chosen = samples.c.id.in_(chunk)
        query = select(samples.c.id, samples.c.group_id).where(chosen, samples.c.group_id.is_not(None))
        found |= dict(map(tuple, connection.execute(query)))
    return found


def _roles_of(connection: Connection, ids: Collection[int]) -> dict[int, Role]:
    found: dict[int, Role] = {}
    for chunk in chunks(ids):
        chosen = groups.c.id.in_(chunk)
        found |= dict(map(tuple, connection.execute(select(groups.c.id, groups.c.role).where(chosen))))
    return found
