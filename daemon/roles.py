"""Which role a sample's group gets, once and for ever: train, tune or judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sqlalchemy import Connection, func, select

from daemon.schema import groups, occurrences, samples
from policies.facts import ROLES, Role

Counts = dict[str, Counter[Role]]  # class -> role -> samples


def furthest_behind(counts: Mapping[Role, int], shares: Mapping[Role, float], sha256: bytes) -> Role:
    """The role furthest behind its share, were one more sample to come; the hash breaks ties.

    Unlike a role drawn by the hash alone, this leaves no small class without a judge by bad luck.
    """
    total = sum(counts.values()) + 1
    behind = {role: round(shares[role] * total - counts.get(role, 0), 9) for role in ROLES}
    most = max(behind.values())
    tied = [role for role in ROLES if behind[role] == most]
    return tied[int.from_bytes(sha256[:8], "big") % len(tied)]


def count_roles(connection: Connection) -> Counts:
    """How many samples of each class have each role now."""
    rows = connection.execute(
        select(occurrences.c.class_name, groups.c.role, func.count(func.distinct(samples.c.id)))
        .join(samples, samples.c.id == occurrences.c.sample_id)
        .join(groups, groups.c.id == samples.c.group_id)
        .where(occurrences.c.gone.is_(None), occurrences.c.class_name.is_not(None))
        .group_by(occurrences.c.class_name, groups.c.role)
    )
    counts: Counts = {}
    for name, role, number in rows:
        counts.setdefault(name, Counter())[role] = number
    return counts
