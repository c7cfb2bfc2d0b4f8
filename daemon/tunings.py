"""Tunings that came to their end: the best settings of an architecture, and when they were searched for."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from daemon import schema
from daemon.ground import Ground
from daemon.journal import add, now

DAY = 86_400.0


def record(connection: Connection, ground: Ground, architecture: str, outputs: Mapping[str, Any]) -> None:
    """The tuning as a row; its best trial is the training that its settings ask for, and is not run again."""
    tuned = dataclasses.replace(ground, tuned={**ground.tuned, architecture: outputs["best"]})
    if ground.settings["train"]["optimizer"] != "auto":  # which no trial searched for
        _hand_over(Path(outputs["run"]), tuned.run_folder(architecture, tuned.training(architecture)))
    add(
        connection,
        schema.tunings,
        cycle_id=ground.cycle,
        target=ground.requirement.target,
        architecture=architecture,
        snapshot_id=ground.snapshot,
        best=outputs["best"],
        trials=outputs["trials"],
        score=outputs["score"],
        at=now(),
    )


def _hand_over(trial: Path, run: Path) -> None:
    """Copies the trial's run folder, whole or not at all. Without it the training is run."""
    aside = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):
        if not run.exists():
            shutil.copytree(trial, aside)
            aside.rename(run)


def best(connection: Connection, target: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that each architecture's last tuning for the target found, of those that may be tuned still.

    None where tuning is switched off: what config.toml says is in force then.
    """
    if not settings["tune"]["trials"]:
        return {}
    table = schema.tunings
    newest = select(func.max(table.c.id)).where(table.c.target == target).group_by(table.c.architecture)
    rows = connection.execute(select(table.c.architecture, table.c.best).where(table.c.id.in_(newest)))
    space = settings["tune"]["space"]
    return {name: {key: value for key, value in found.items() if key in space} for name, found in rows}


def count(connection: Connection, target: str, architecture: str) -> int:
    """How often the architecture was tuned for the target."""
    table = schema.tunings
    mine = (table.c.target == target, table.c.architecture == architecture)
    return int(connection.execute(select(func.count()).where(*mine)).scalar() or 0)


def ages(connection: Connection, target: str) -> dict[str, float]:
    """Days since the last tuning of each architecture for the target."""
    table = schema.tunings
    newest = select(table.c.architecture, func.max(table.c.at)).where(table.c.target == target)
    rows = connection.execute(newest.group_by(table.c.architecture))
    return {name: max(now() - at, 0.0) / DAY for name, at in rows}
