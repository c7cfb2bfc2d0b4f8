"""Which group a labelled sample joins, once and for ever: the user's key's, its near-duplicates', or one of its own.

A group lies in one role. A sample that is near to groups of two roles joins none and is used nowhere: in either it
would leak what the other is to be judged by.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, func, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from daemon import roles
from daemon.journal import chunks, now
from daemon.schema import groups, near_duplicates, occurrences, samples
from policies.facts import Role


@dataclass(slots=True)
class _Cluster:
    """New samples that must share a role, and the groups that they are near to already."""

    members: list[int] = field(default_factory=list)
    near: set[int] = field(default_factory=set)
    key: str = ""


def remember(connection: Connection, pairs: Iterable[tuple[int, int]]) -> None:
    """Writes down pairs of near-duplicates (sample ids)."""
    rows = [{"sample_id": max(pair), "twin_id": min(pair), "at": now()} for pair in pairs]
    if rows:
        connection.execute(upsert(near_duplicates).on_conflict_do_nothing(), rows)


def place(connection: Connection, drop: int, shares: Mapping[Role, float]) -> None:
    """Gives each labelled sample of a drop that has no group yet its group, and new groups their role."""
    rows = connection.execute(
        select(samples.c.id, samples.c.sha256, occurrences.c.class_name, occurrences.c.group_key)
        .join(occurrences, occurrences.c.sample_id == samples.c.id)
        .where(
            occurrences.c.drop_id == drop,
            occurrences.c.gone.is_(None),
            occurrences.c.class_name.is_not(None),
            samples.c.group_id.is_(None),
        )
        .order_by(samples.c.sha256)
    ).all()
    if not rows:
        return
    shas = {row.id: row.sha256 for row in rows}
    names = {row.id: row.class_name for row in rows}
    keys = {row.id: row.group_key for row in rows if row.group_key is not None}
    counts = roles.count_roles(connection)
    clusters = [
        *_by_key(connection, keys),
        *_by_likeness(connection, drop, [id_ for id_ in shas if id_ not in keys], shas),
    ]
    known = _roles_of(connection, {group for cluster in clusters for group in cluster.near})
    first = connection.execute(select(func.coalesce(func.max(groups.c.id), 0))).scalar_one() + 1
    new: list[dict[str, object]] = []
    joined: list[dict[str, int]] = []
    # The largest first: what is small can still make up for what is not.
    for cluster in sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.key)):
        near = {known[group] for group in cluster.near}
        if len(near) > 1:
            continue  # near to two roles
        coming = Counter(names[sample] for sample in cluster.members)
        role = near.pop() if near else roles.furthest_behind(counts, shares, coming, cluster.key)
        group = min(cluster.near, default=first + len(new))
        if not cluster.near:
            new.append({"id": group, "key": cluster.key, "role": role, "given": now()})
        for name, number in coming.items():
            counts.setdefault(name, Counter())[role] += number
        joined += [{"sample": sample, "group": group} for sample in cluster.members]
    if new:
        connection.execute(insert(groups), new)
    if joined:
        joining = update(samples).where(samples.c.id == bindparam("sample")).values(group_id=bindparam("group"))
        connection.execute(joining, joined)


def _by_key(connection: Connection, keys: Mapping[int, str]) -> Iterable[_Cluster]:
    clusters: dict[str, _Cluster] = defaultdict(_Cluster)
    for sample, key in keys.items():
        clusters[f"key:{key}"].members.append(sample)
    for key, cluster in clusters.items():
        cluster.key = key
        found = connection.execute(select(groups.c.id).where(groups.c.key == key)).scalar()
        cluster.near = set() if found is None else {found}
    return clusters.values()


def _by_likeness(connection: Connection, drop: int, new: list[int], shas: Mapping[int, bytes]) -> Iterable[_Cluster]:
    """Connected by pairs of near-duplicates, also by way of samples that have no group yet themselves."""
    twins = _twins(connection, drop, new)
    grouped = _groups_of(connection, twins)
    seen: set[int] = set()
    for sample in new:
        if sample in seen:
            continue
        cluster, waiting = _Cluster(key=shas[sample].hex()), [sample]
        seen.add(sample)
        while waiting:
            at = waiting.pop()
            if at in shas:
                cluster.members.append(at)
            for twin in twins.get(at, ()):
                if twin in grouped:
                    cluster.near.add(grouped[twin])
                elif twin not in seen:
                    seen.add(twin)
                    waiting.append(twin)
        yield cluster


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
