"""What is measured of untrained architectures in a search: rows of the benchmarks, which serve later searches too."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from daemon import measurements, schema
from daemon.ground import Ground
from daemon.journal import add, now
from daemon.variants import Devices, split
from policies.facts import METHOD, Measurement, from_dict
from policies.search import Sketched

FRESH_SECONDS = 86_400.0  # older figures are taken anew: no noisy moment must rule an architecture out for good


def record(
    connection: Connection, ground: Ground, name: str, variant: str, outputs: Mapping[str, Any], size: float | None
) -> None:
    """The measurement of an untrained architecture, or (under "skipped") why this machine cannot make one."""
    figures = {"unverified": outputs["skipped"], "artifact_mb": size} if "skipped" in outputs else dict(outputs)
    _add(connection, ground, name, variant, outputs.get("device", ""), figures, None)


def record_failure(connection: Connection, ground: Ground, name: str, variant: str, device: str, words: str) -> None:
    """It could not be drawn, built or measured."""
    _add(connection, ground, name, variant, device, {}, words)


def _add(
    connection: Connection, ground: Ground, name: str, variant: str, device: str, figures: dict[str, Any], error: Any
) -> None:
    load = {"batch_size": ground.requirement.batch_size, "concurrency": ground.requirement.concurrency}
    size = {"height": ground.requirement.height, "width": ground.requirement.width, "classes": ground.classes}
    about = {"architecture": name, "variant": variant, "device": device, **size, **load}
    add(connection, schema.benchmarks, **about, figures=figures, error=error, at=now())
    for other in ground.sketches.glob("*"):  # of this one another variant may be built
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)


def known(connection: Connection, ground: Ground, started: float, devices: Devices) -> dict[str, dict[str, Sketched]]:
    """The newest of each architecture and variant at the size and load of the cycle's target, on this machine.

    A failure counts in the cycle alone in which it was seen: the next may do better.
    """
    table, asked = schema.benchmarks, ground.requirement
    rows = connection.execute(
        select(table)
        .where(
            table.c.height == asked.height,
            table.c.width == asked.width,
            table.c.classes == ground.classes,
            table.c.batch_size == asked.batch_size,
            table.c.concurrency == asked.concurrency,
            table.c.at > started - FRESH_SECONDS,
        )
        .order_by(table.c.id)
    )
    best = measurements.quiet(connection, devices.get("onnxruntime", ""), asked.concurrency)
    found: dict[str, dict[str, Sketched]] = {}
    for row in rows:
        if row.error and row.at >= started:
            found.setdefault(row.architecture, {})[row.variant] = Sketched(None, row.error)
        elif not row.error and "unverified" in row.figures:
            if row.at >= started:  # another day this machine may be able to run it
                size, why = row.figures["artifact_mb"], row.figures["unverified"]
                found.setdefault(row.architecture, {})[row.variant] = Sketched(None, "", size, why)
        elif not row.error and row.device == devices[split(row.variant)[0]]:
            figures = {**row.figures, "device": row.device, "batch_size": row.batch_size}
            figures |= {"concurrency": row.concurrency, "threads": row.figures.get("threads", 1)}
            if figures.setdefault("method", METHOD) == METHOD:
                measured = from_dict(Measurement, figures).corrected(best)
                found.setdefault(row.architecture, {})[row.variant] = Sketched(measured)
    return found
