"""Which group a labelled sample joins, once and for ever: the user's key's, its near-duplicates', or one of its own.

A group lies in one role. A sample that is near to samples of two roles joins none and is used nowhere: in either it
would leak what the other is to be judged by. Nor does one whose key and whose near-duplicates lie in different roles.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from sqlalchemy import Connection, func, or_, select
from sqlalchemy.dialects.sqlite import insert as upsert

from daemon import roles
from daemon.journal import add_many, chunks, now
from daemon.schema import groups, near_duplicates, occurrences, samples
from policies.facts import Role

AT_ONCE = 10_000  # rows that are read ahead


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
    twins = _twins(connection, drop, shas)
    placing = _Placing(connection, names, twins, roles.Balance(roles.count_roles(connection), shares))
    # The largest first: what is small can still make up for what is not.
    for key, members in sorted(_by_key(keys).items(), key=lambda its: (-len(its[1]), its[0])):
        placing.by_key(key, members, _find(connection, key))
    alike = {sample: sha.hex() for sample, sha in shas.items() if sample in twins and sample not in keys}
    for members, near in sorted(placing.connect(alike), key=lambda its: (-len(its[0]), alike[its[0][0]])):
        placing.by_likeness(alike[members[0]], members, near)
    for sample, sha in shas.items():
        if sample not in twins and sample not in keys:  # alone, as most
            placing.open(sha.hex(), [sample])
    add_many(connection, groups, ("id", "key", "role", "given"), placing.opened)
    if placing.joined:
        connection.exec_driver_sql("UPDATE samples SET group_id = ? WHERE id = ?", placing.joined)


class _Placing:
    """What is known of groups while the samples of one drop are given theirs."""

    def __init__(
        self, connection: Connection, names: Mapping[int, str], twins: Mapping[int, set[int]], balance: roles.Balance
    ) -> None:
        self.opened: list[tuple[int, str, Role, float]] = []  # groups: id, key, role, when
        self.joined: list[tuple[int, int]] = []  # group and sample
        self._names, self._twins, self._balance = names, twins, balance
        self._groups = _groups_of(connection, twins)  # of samples
        self._roles = _roles_of(connection, set(self._groups.values()))  # of groups
        self._next = connection.execute(select(func.coalesce(func.max(groups.c.id), 0))).scalar_one() + 1
        self._moment = now()

    def by_key(self, key: str, members: Sequence[int], known: tuple[int, Role] | None) -> None:
        """Into the key's group; a new one lies where most of what is near to its samples does."""
        near = {sample: {self._roles[group] for group in self._near(sample)} for sample in members}
        votes = Counter(role for its in near.values() for role in sorted(its))
        role = known[1] if known else next((role for role, _ in votes.most_common(1)), None)
        fitting = [sample for sample, its in near.items() if its <= {role}]
        if known:
            self._roles[known[0]] = known[1]
            self._join(known[0], fitting)
        elif fitting:
            self.open(key, fitting, role)

    def by_likeness(self, key: str, members: Sequence[int], near: Collection[int]) -> None:
        """Into the first of the groups that they are near to, if these lie in one role."""
        if not near:
            self.open(key, members)
        elif len({self._roles[group] for group in near}) == 1:
            self._join(min(near), members)

    def connect(self, new: Collection[int]) -> Iterator[tuple[list[int], set[int]]]:
        """Samples connected by pairs, also by way of others that have no group yet, and the groups near to them."""
        seen: set[int] = set()
        for sample in new:
            if sample in seen:
                continue
            members, near, waiting = list[int](), set[int](), [sample]
            seen.add(sample)
            while waiting:
                at = waiting.pop()
                if at in new:
                    members.append(at)
                near |= self._near(at)
                further = self._twins.get(at, set()) - self._groups.keys() - seen
                seen |= further
                waiting += further
            yield members, near

    def open(self, key: str, members: Sequence[int], role: Role | None = None) -> None:
        """A new group. role: None: that which is furthest behind."""
        coming = self._count(members)
        if role is None:
            role = self._balance.choose(coming, key)
        group, self._next = self._next, self._next + 1
        self._roles[group] = role
        self.opened.append((group, key, role, self._moment))
        self._join(group, members)

    def _join(self, group: int, members: Sequence[int]) -> None:
        self._balance.add(self._count(members), self._roles[group])
        for sample in members:
            self._groups[sample] = group
            self.joined.append((group, sample))

    def _near(self, sample: int) -> set[int]:
        """The groups of its near-duplicates."""
        return {self._groups[twin] for twin in self._twins.get(sample, ()) if twin in self._groups}

    def _count(self, members: Sequence[int]) -> dict[str, int]:
        found: dict[str, int] = {}  # for one of each a Counter takes a microsecond more
        for sample in members:
            name = self._names[sample]
            found[name] = found.get(name, 0) + 1
        return found


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


def _by_key(keys: Mapping[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for sample, key in keys.items():
        found[f"key:{key}"].append(sample)
    return found


def _find(connection: Connection, key: str) -> tuple[int, Role] | None:
    """The group of this key, and its role."""
    found = connection.execute(select(groups.c.id, groups.c.role).where(groups.c.key == key)).first()
    return (found.id, found.role) if found else None


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
