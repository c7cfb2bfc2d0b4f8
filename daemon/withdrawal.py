"""What of a promotion can be taken back, and how its row tells that somebody wanted it no more."""

from __future__ import annotations

from daemon.journal import AnyRow
from daemon.schema import promotions

WITHDRAWABLE = ("stage", "probe", "put")  # steps before which no client can have met what is promoted
EARLY = (None, *WITHDRAWABLE[:-1])  # the last finished step of what Triton cannot have begun to load
IS_EARLY = promotions.c.step.is_(None) | promotions.c.step.in_(WITHDRAWABLE[:-1])  # the same, of a row as it is now
RENEWALS = ("settings", "move")  # kinds by which a champion is switched to itself
WITHDRAWN = "withdrawn:"  # how the error begins of what the daemon wanted no more
TAKEN_BACK = "taken back by"  # of what a person wanted no more


def was_taken_back(row: AnyRow) -> bool:
    return (row.error or "").startswith(TAKEN_BACK)


def was_unwanted(row: AnyRow) -> bool:
    return (row.error or "").startswith((WITHDRAWN, TAKEN_BACK))
