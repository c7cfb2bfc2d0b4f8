"""Which role a sample's group gets, once and for ever: train, tune or judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from sqlalchemy import Connection

from daemon import standings
from policies.facts import ROLES, Role

NONE = [0] * len(ROLES)
ROUNDING = 1e-9  # samples: what differs by less is equal
Counts = dict[str, Counter[Role]]  # class -> role -> samples


class Balance:
    """How many samples of each class have each role, while groups are given theirs one after another."""

    def __init__(self, counts: Mapping[str, Mapping[Role, int]], shares: Mapping[Role, float]) -> None:
        self._shares = [shares[role] for role in ROLES]
        self._given = {name: [given.get(role, 0) for role in ROLES] for name, given in counts.items()}

    def choose(self, coming: Mapping[str, int], key: str) -> Role:
        """The role furthest behind its share in the classes of a group, with it; a hash of its key breaks ties.

        coming: the group's samples by class. Unlike a role drawn by the hash alone, this leaves no small class without
        a judge by bad luck.
        """
        behind = [0.0] * len(ROLES)
        for name, number in coming.items():
            given = self._given.get(name, NONE)
            total = sum(given) + number
            behind = [
                so_far + share * total - had for so_far, share, had in zip(behind, self._shares, given, strict=True)
            ]
        most = max(behind) - ROUNDING
        tied = [role for role, value in zip(ROLES, behind, strict=True) if value > most]
        return tied[0] if len(tied) == 1 else tied[_hash(key) % len(tied)]

    def add(self, coming: Mapping[str, int], role: Role) -> None:
        """These samples have this role."""
        for name, number in coming.items():
            self._given.setdefault(name, [*NONE])[ROLES.index(role)] += number


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def count_roles(connection: Connection) -> Counts:
    """How many samples of each class have each role now, held ones too."""
    counts: Counts = {}
    for (state, name, role), number in standings.count(connection).items():
        if name is not None and role is not None and state != "forgotten":
            counts.setdefault(name, Counter())[role] += number
    return counts
