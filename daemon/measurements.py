"""Measurements as they are held against constraints: corrected to this machine when nothing disturbs it.

How fast the reference network runs then is read from the journal at each look, so that figures of a busy hour come out
right once a quiet one was seen, and all are corrected to the same: to what an eighth of its runs were as fast as, for
the fastest of many processes was lucky, and the luckier the more there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from daemon import schema
from policies.facts import MAXIMIZED, METHOD, Measurement, Requirement, from_dict

LUCKY = 1 / 8  # of the measurements, whose reference ran faster than it does in general
NEWEST = 200  # measurements that are looked at: a machine that became slower for good is not held to its past for ever


def quiet(connection: Connection, device: str, concurrency: int) -> dict[str, float]:
    """What the reference network does on this device (its fingerprint) so many at once, undisturbed, by figure."""
    known: list[Mapping[str, float]] = []
    for table in (schema.measurements, schema.benchmarks):
        figures = table.c.figures
        rows = connection.execute(
            select(figures["reference"])
            .where(
                figures["reference_device"].as_string() == device,
                figures["concurrency"].as_integer() == concurrency,
                figures["method"].as_integer() == METHOD,
            )
            .order_by(table.c.id.desc())
            .limit(NEWEST)
        ).scalars()
        known += rows
    return undisturbed(known)


def undisturbed(references: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What an eighth of these readings of the reference network are at least as fast as, by figure."""
    known: dict[str, list[float]] = {}
    for reference in references:
        for name, value in reference.items():
            known.setdefault(name, []).append(value)
    return {name: sorted(values, reverse=name in MAXIMIZED)[int(LUCKY * len(values))] for name, values in known.items()}


def read(connection: Connection, figures: Mapping[str, Any]) -> Measurement:
    """The measurement of a row's figures, corrected."""
    found = from_dict(Measurement, figures)
    if not found.reference:
        return found
    return found.corrected(quiet(connection, found.reference_device, found.concurrency))


def newest(
    connection: Connection, artifact: str, requirement: Requirement, device: str, best: Mapping[str, float]
) -> Measurement | None:
    """The newest of an artifact under the requirement's load on this device, by the method in use; `best`: `quiet`."""
    table = schema.measurements
    rows = connection.execute(
        select(table.c.figures).where(table.c.artifact_id == artifact).order_by(table.c.id.desc())
    ).scalars()
    asked = (requirement.batch_size, requirement.concurrency, device, METHOD)
    for figures in rows:
        found = from_dict(Measurement, figures)
        if (found.batch_size, found.concurrency, found.device, found.method) == asked:
            return found.corrected(best)
    return None
