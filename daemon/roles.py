"""Which role a sample's group gets, once and for ever: train, tune or judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import Connection

from daemon import standings
from policies.facts import ROLES, Role

ROUNDING = 1e-9  # samples: what differs by less is equal
Counts = dict[str, Counter[Role]]  # class -> role -> samples


def furthest_behind(
    counts: Mapping[str, Mapping[Role, int]], shares: Mapping[Role, float], coming: Mapping[str, int], key: str
) -> Role:
    """The role furthest behind its share in the classes of a group, were it to come; a hash of its key breaks ties.

    counts: by class and role; coming: the group's samples by class. Unlike a role drawn by the hash alone, this leaves
    no small class without a judge by bad luck.
    """
    behind = [0.0] * len(ROLES)
    for name, number in coming.items():
        given = counts.get(name, {})
        total = sum(given.values()) + number
        for at, role in enumerate(ROLES):
            behind[at] += shares[role] * total - given.get(role, 0)
    most = max(behind) - ROUNDING
    tied = [role for role, value in zip(ROLES, behind, strict=True) if value > most]
    if len(tied) == 1:
        return tied[0]
    return tied[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(tied)]


def count_roles(connection: Connection) -> Counts:
    """How many samples of each class have each role now, held ones too."""
    counts: Counts = {}
    for (state, name, role), number in standings.count(connection).items():
        if name is not None and role is not None and state != "forgotten":
            counts.setdefault(name, Counter())[role] += number
    return counts
